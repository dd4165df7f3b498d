"""The weights that a served model samples from: which version, and who can change it."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import msgspec

#: What becomes of requests in flight while weights are loaded: kept (and gone on with under the new weights), waited
#: for, or aborted (and resumed from their sampled tokens by us).
InFlight = Literal["keep", "wait", "abort"]


@runtime_checkable
class WeightControl(Protocol):
    """A transport whose server's weights can be changed while it serves."""

    async def pause(self, mode: InFlight = "keep") -> None:
        """Stops sampling. New requests wait."""
        ...

    async def resume(self) -> None:
        """Goes on after `pause`."""
        ...

    async def update_weights(self, version: str, path: str | None) -> None:
        """Loads a folder that the server can read (None where it has the weights already), and names the version."""
        ...


class Weights(msgspec.Struct):
    """What is known of the weights in use."""

    version: str | None = None
    """As it was last named by `Engine.update_weights`; before that as the server named it, None where it does not."""
    updates: int = 0
    """How often they were updated from here: what staleness is counted in."""

    def salt(self, own: str | None) -> str | None:
        """The cache salt of a request: cache entries of other weights must not be reused, by any server."""
        if not self.updates or self.version is None:
            return own
        return f"{own}/{self.version}" if own else self.version
