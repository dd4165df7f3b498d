"""An engine's numbers for Prometheus, by `prometheus-client`: read from its stats when it is scraped, so a turn pays
nothing for it.

    from prometheus_client import start_http_server
    from rollout.observe.prometheus import StatsCollector

    collector = StatsCollector(engine.stats)
    registry.register(collector)            # a trainer's own registry
    with serve(collector, port=9400): ...   # or a port of its own, as `rollout run --metrics-port` has it

Stats are an event loop's: whoever scrapes from another thread waits for the loop's next step, and where that does not
come, gets what was last known, with its age in `rollout_stats_age_seconds`. What a name given by users becomes, such as
an environment's metric or a server's address, is one of so many labels at most, and `other` from there on.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from rollout.errors import ConfigError
from rollout.observe.families import Labels, families
from rollout.observe.stats import Stats

#: How long a scrape waits for the event loop. Prometheus itself gives a scrape 10 s.
LOOP_S = 2.0

Reads = Callable[[], Stats]


class StatsCollector(Collector):  # type: ignore[misc]  # mypy does not follow the package: see pyproject.toml
    """What a registry of `prometheus_client` collects from: an engine, or several by name."""

    def __init__(self, stats: Reads | Mapping[str, Reads]) -> None:
        """`stats` is `engine.stats`, or such by name: each series has the name as its label `engine` then.

        Made on an event loop it reads there. Raises RuntimeError, at a scrape, where nothing was ever read.
        """
        several = isinstance(stats, Mapping)
        by_name = dict(stats) if isinstance(stats, Mapping) else {"": stats}
        self._sources = {name: _Source(read) for name, read in by_name.items()}
        self._labels = Labels(names=["engine"] if several else [])

    def __repr__(self) -> str:
        return f"<StatsCollector of {len(self._sources)}>"

    def describe(self) -> Iterable[Metric]:
        """What there may be, by name: a registry that has it already refuses, and nothing is read yet."""
        return families({}, Labels(names=self._labels.names))

    def collect(self) -> Iterable[Metric]:
        """The numbers as they are now."""
        return families({name: source.read() for name, source in self._sources.items()}, self._labels)


class _Source:
    """One engine's stats, from whatever thread."""

    def __init__(self, read: Reads) -> None:
        self._read = read
        self._last: tuple[float, Stats] | None = None
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def read(self) -> tuple[Stats, float]:
        """The stats, and how old they are, seconds."""
        try:
            self._last = time.monotonic(), self._now()
        except (TimeoutError, RuntimeError):  # the loop is held up, or has ended
            if self._last is None:
                raise
        read_at, stats = self._last
        return stats, time.monotonic() - read_at

    def _now(self) -> Stats:
        loop = self._loop
        if loop is None or _is_here(loop):
            return self._read()
        future: concurrent.futures.Future[Stats] = concurrent.futures.Future()

        def read() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._read())
                except Exception as error:  # raised where it is waited for, in the scrape
                    future.set_exception(error)

        loop.call_soon_threadsafe(read)
        try:
            return future.result(LOOP_S)
        finally:
            future.cancel()


def _is_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


@contextlib.contextmanager
def serve(collector: StatsCollector, *, port: int, host: str = "127.0.0.1") -> Iterator[str]:
    """Serves the numbers, and only them, in a thread, while a block lasts; gives the address. 0 is any free port.

    To be entered and left in a thread where a loop must not wait. Raises ConfigError where nothing can listen there.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot serve metrics on {host}:{port}: {reason}; give another --metrics-port or --metrics-host"
        ) from error
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
