"""What of a trainer's settings has to fit the engine. Pure."""

from __future__ import annotations

from typing import Any

from rollout.errors import ConfigError
from rollout.thread import EngineThread

#: How TRL would sample, and what means that it does nothing: the engine samples, and is told by `EngineConfig`.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (None, 1.0),
    "top_k": (None, 0, -1),
    "min_p": (None, 0.0),
    "repetition_penalty": (None, 1.0),
}


def check_engine(what: str, engine: Any) -> None:
    """Raises ConfigError for an engine of another kind: TRL's trainers wait for it, and know no event loop."""
    if not isinstance(engine, EngineThread):
        raise ConfigError(f"trl.{what} takes an EngineThread, not {type(engine).__name__}: `with EngineThread(...)`")


def check_sampling(args: Any, engine: EngineThread) -> None:
    """Raises ConfigError for a sampling setting of `GRPOConfig` that nobody heeds here."""
    for name, nothing in _NEUTRAL.items():
        value = getattr(args, name, None)
        if value not in nothing and value != engine.config.sampling.get(name):
            raise ConfigError(
                f"GRPOConfig({name}={value:g}) has no effect, since the engine samples: give EngineConfig.sampling "
                f"the same {name}, or leave it out"
            )
