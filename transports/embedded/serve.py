"""The embedded model on a port: what `rollout serve` runs."""

from __future__ import annotations

from pathlib import Path

import uvicorn

from rollout.errors import ConfigError
from transports.embedded import MODEL_DIR
from transports.embedded.app import create_app


def run(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    dialect: str = "vllm",
    model_dir: Path | None = None,
    served_name: str = "rollout-tiny",
) -> None:
    """Serves until it is interrupted. Raises ConfigError for a dialect or a folder that is none."""
    if dialect not in ("vllm", "dynamo"):
        raise ConfigError(f"--dialect is vllm or dynamo, not {dialect!r}")
    folder = model_dir or MODEL_DIR
    try:
        app = create_app(folder, served_name=served_name, dialect="vllm" if dialect == "vllm" else "dynamo")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"no model to serve in {str(folder)!r}: {error}") from error
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5)
