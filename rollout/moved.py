"""Names of modules that were public before the rooms: they work for one release more, with a warning.

    from rollout.fleet import Fleet      # DeprecationWarning: rollout.fleet is rollout.servers.fleet now

An old module that is no file any more is found by an import hook, which hands out the new module itself, so that a
class has one identity whichever way it was imported. Where a room has the old module's name (`rollout.codec`), or
where a module's names were divided among several, they are handed on one by one.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import operator
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

#: Old module -> new module, or the new modules among which its names were divided, lowest first.
MOVED: dict[str, str | tuple[str, ...]] = {
    "rollout.advantages": "rollout.tokens.advantages",
    "rollout.answers": "rollout.play.answers",
    "rollout.batch": "rollout.tokens.batch",
    "rollout.bridge": ("rollout.codec.types", "rollout.codec.template", "rollout.codec.renderer"),
    "rollout.canonical": "rollout.chat.canonical",
    "rollout.cli": "rollout.cli.app",
    "rollout.codec": (
        "rollout.codec.types",
        "rollout.codec.tokenizer",
        "rollout.codec.protocol",
        "rollout.codec.families",
        "rollout.codec.server",
        "rollout.codec.local",
    ),
    "rollout.command": "rollout.cli.command",
    "rollout.connect": "rollout.play.connect",
    "rollout.crew": ("rollout.workers.launch", "rollout.workers.pool"),
    "rollout.crew.channel": "rollout.workers.channel",
    "rollout.crew.hand": "rollout.workers.handle",
    "rollout.crew.launch": "rollout.workers.launch",
    "rollout.crew.process": "rollout.workers.process",
    "rollout.crew.remote": "rollout.workers.remote",
    "rollout.crew.silence": "rollout.workers.silence",
    "rollout.crew.where": "rollout.workers.where",
    "rollout.crew.wire": "rollout.workers.wire",
    "rollout.crew.worker": "rollout.workers.worker",
    "rollout.deadlines": "rollout.loop.deadlines",
    "rollout.ends": "rollout.cli.ends",
    "rollout.episode": "rollout.play.episode",
    "rollout.export": "rollout.store.export",
    "rollout.failure_limit": "rollout.cli.failure_limit",
    "rollout.faults": "rollout.play.faults",
    "rollout.fleet": "rollout.servers.fleet",
    "rollout.folder_config": "rollout.store.config",
    "rollout.forks": "rollout.process.forks",
    "rollout.group_reward": "rollout.schedule.group_reward",
    "rollout.host": "rollout.play.host",
    "rollout.imports": "rollout.process.imports",
    "rollout.lag": "rollout.loop.lag",
    "rollout.literal": "rollout.codec.literal",
    "rollout.lock": "rollout.store.lock",
    "rollout.logs": "rollout.cli.logs",
    "rollout.loop_thread": "rollout.loop.thread",
    "rollout.member": "rollout.servers.server",
    "rollout.messages": "rollout.chat.messages",
    "rollout.open_files": "rollout.process.open_files",
    "rollout.outcomes": "rollout.observe.outcomes",
    "rollout.pace": "rollout.schedule.concurrency",
    "rollout.parsing": "rollout.codec.readers",
    "rollout.pattern": "rollout.codec.pattern",
    "rollout.placement": "rollout.servers.placement",
    "rollout.play": "rollout.cli.run",
    "rollout.player": "rollout.play.player",
    "rollout.prefix": "rollout.tokens.prefix",
    "rollout.probe": "rollout.probe.probe",
    "rollout.progress": "rollout.cli.progress",
    "rollout.resume": "rollout.cli.resume",
    "rollout.resumption": "rollout.servers.completion",
    "rollout.run_index": "rollout.store.index",
    "rollout.runs": ("rollout.schedule.playing", "rollout.schedule.hand_over", "rollout.schedule.stream"),
    "rollout.sample_files": "rollout.store.sample_files",
    "rollout.samples": "rollout.tokens.samples",
    "rollout.scheduler": "rollout.schedule.scheduler",
    "rollout.server_life": "rollout.servers.life",
    "rollout.servers": "rollout.servers.reconciler",
    "rollout.session": "rollout.play.session",
    "rollout.settings": "rollout.store.settings",
    "rollout.show": "rollout.cli.show",
    "rollout.stand_in": "rollout.codec.stand_in",
    "rollout.stats": "rollout.observe.stats",
    "rollout.stdio": "rollout.process.stdio",
    "rollout.store": "rollout.store.folder",
    "rollout.streams": "rollout.schedule.streams",
    "rollout.submissions": "rollout.schedule.submissions",
    "rollout.summary": "rollout.cli.summary",
    "rollout.task_list": "rollout.store.task_list",
    "rollout.task_source": "rollout.schedule.task_source",
    "rollout.template_check": "rollout.probe.shapes",
    "rollout.threads": "rollout.process.threads",
    "rollout.tokenizer": "rollout.codec.tokenizer",
    "rollout.trajectory": "rollout.tokens.trajectory",
    "rollout.turnstile": "rollout.loop.turnstile",
    "rollout.user_tasks": "rollout.process.user_tasks",
    "rollout.verify": "rollout.tokens.verify",
    "rollout.weights": "rollout.servers.weights",
    "transports.answers": "transports.http.answers",
    "transports.common": "transports.openai",
    "transports.http": "transports.http.client",
    "transports.metrics": "transports.http.metrics",
    "transports.patience": "transports.http.patience",
    "transports.pool": "transports.http.pool",
    "transports.vllm": "transports.vllm.transport",
    "transports.vllm_wire": "transports.vllm.wire",
}

#: Single names that left a module which is still there -> where each is now.
MOVED_NAMES = {
    "rollout": {"samples_of": "rollout.moved:samples_of"},
    "rollout.tokens.samples": {
        "samples_of": "rollout.moved:samples_of",
        "group_samples": "rollout.moved:group_samples",
        "never_sampled": "rollout.bench.never_sampled:never_sampled",
    },
    "rollout.tokens.batch": {
        "version_number": "rollout.tokens.samples:version_number",
        "INITIAL_VERSION": "rollout.tokens.samples:INITIAL_VERSION",
        "numpy_arrays": "rollout.tokens.samples:numpy_arrays",
    },
    "rollout.loop.lag": {"spared_collector": "rollout.loop.collector:infrequent_full_gc"},
    "rollout.schedule.concurrency": {
        "Pace": "rollout.schedule.concurrency:AdaptiveConcurrency",
        "keep_pace": "rollout.schedule.concurrency:adapt_concurrency",
    },
    "rollout.servers.server": {"Member": "rollout.servers.server:Server"},
    "rollout.workers.pool": {"Crew": "rollout.workers.pool:WorkerPool"},
    "rollout.records": {
        "Mode": "rollout.config:Mode",
        "EXPECTED_FALLBACKS": "rollout.tokens.prefix:EXPECTED_FALLBACKS",
    },
    "rollout.play.connect": {"check_config": "rollout.config:check_config"},
    "rollout.transport": {
        **dict.fromkeys(("Watched", "Metered", "Sticky", "WeightControl"), "rollout.transport:Transport"),
        "IDS": "rollout.request:IDS",
    },
}


#: What left a class, or has another name there -> the path to it on an object. A private one was never for users.
MOVED_MEMBERS = {
    "Engine": {"keep_untaken": "_streams.keep_untaken", "collected": "_streams.collected"},
    "EngineThread": {
        "engine": "_engine",
        "call": "_runner.call",
        "keep_unclaimed": "_runner.keep_unclaimed",
        "end_unread": "_runner.end_unread",
    },
    "Fleet": {"standing": "state"},
    "Weights": {"standing": "state"},
}


def samples_of(rollout: Any) -> Any:
    """`Rollout.samples`, as it was called."""
    return rollout.samples()


def group_samples(group: Any, *advantage: Any) -> Any:
    """`Group.samples`, as it was called."""
    return group.samples(*advantage)


def forward_names(module: str) -> Callable[[str], Any]:
    """Has a module hand on the names that have left it.

    Its `__getattr__` is set from here, where no type checker sees it: to one, what is not there is an error.
    """

    def __getattr__(name: str) -> Any:
        if (new := MOVED_NAMES[module].get(name)) is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, attribute = new.partition(":")
        shown = _METHODS.get(name, f"{place}.{attribute}")
        _warn(f"{module}.{name}", shown)
        return getattr(importlib.import_module(place), attribute)

    sys.modules[module].__dict__["__getattr__"] = __getattr__
    return __getattr__


def forward_members(kind: type) -> None:
    """Has a class hand on what has left it."""

    def __getattr__(self: Any, name: str) -> Any:
        if (path := MOVED_MEMBERS[kind.__name__].get(name)) is None:
            raise AttributeError(f"{kind.__name__!r} object has no attribute {name!r}")
        place = "the engine's own business" if path.startswith("_") else f"{kind.__name__}.{path} now"
        said = f"{kind.__name__}.{name} is {place}; the old name goes with the next release"
        warnings.warn(said, DeprecationWarning, stacklevel=2)
        return operator.attrgetter(path)(self)

    kind.__getattr__ = __getattr__  # type: ignore[attr-defined]  # set here, so that no type checker sees it


#: Functions that are methods now.
_METHODS = {"samples_of": "Rollout.samples", "group_samples": "Group.samples"}


def forward(old: str) -> Callable[[str], Any]:
    """Has a room that has an old module's name hand on what that module had. See `forward_names`."""

    def __getattr__(name: str) -> Any:
        # Python asks for __path__, and for a room's own modules before it looks for their files.
        if name.startswith("__") or _is_own_module(old, name):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        for new in places(old):
            value = getattr(importlib.import_module(new), name, None)
            # A module is none of its names.
            if value is not None and not isinstance(value, ModuleType):
                _warn(f"{old}.{name}", f"{new}.{name}")
                return value
        raise AttributeError(f"module {old!r} has no attribute {name!r}")

    sys.modules[old].__dict__["__getattr__"] = __getattr__
    return __getattr__


def _is_own_module(room: str, name: str) -> bool:
    return hasattr(sys.modules[room], "__path__") and importlib.util.find_spec(f"{room}.{name}") is not None


def places(old: str) -> tuple[str, ...]:
    """The modules that have an old module's names."""
    new = MOVED[old]
    return (new,) if isinstance(new, str) else new


class Finder:
    """Finds and loads the old modules. The last of all finders, so that nothing that is there is looked up twice.

    It has no base class: importing those of `importlib.abc` takes longer than all else here.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if name not in MOVED:
            return None
        is_package = any(old.startswith(f"{name}.") for old in MOVED)
        loader: Any = self
        return importlib.machinery.ModuleSpec(name, loader, is_package=is_package)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """See `importlib.abc.Loader`: an empty module stands in while the new one is imported."""

    def exec_module(self, module: ModuleType) -> None:
        """Puts the new module in the old one's place, or has the old one hand on names where there are several."""
        old = module.__name__
        if len(places(old)) > 1:
            forward(old)
            return
        _warn(old, places(old)[0])
        sys.modules[old] = importlib.import_module(places(old)[0])


def install() -> None:
    """Has old names found, once."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())


def _warn(old: str, new: str) -> None:
    """Warns at the line that has the old name: by default Python shows that where it is the user's own script's."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename in _BETWEEN or frame.f_code.co_filename.startswith("<frozen importlib"):
        if frame.f_back is None:
            break
        frame = frame.f_back
    warnings.warn_explicit(
        f"{old} is {new} now; the old name goes with the next release",
        DeprecationWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


#: Files whose frames lie between an import statement and the warning.
_BETWEEN = frozenset({__file__, importlib.__file__, sys.modules["rollout"].__file__})
