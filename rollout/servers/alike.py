"""What the servers of one fleet have in common: a trajectory may go on at any of them.

The fleet's `ServerInfo` says of itself only what holds for each server. One that comes is refused where it is another
model or speaks otherwise; where they differ in what is merely recorded, the fleet knows it no more.
"""

from __future__ import annotations

from rollout.errors import ConfigError
from rollout.log import get_logger
from rollout.transport import ServerInfo

#: What must be the same.
_ALIKE = ("model", "dialect", "token_route", "keeps_stop_token")

#: What is recorded of each turn, or sent to all servers or none: not known of any where they differ in it.
_TOLD = ("logprobs_mode", "sampling_defaults", "image_token")

_log = get_logger(__name__)


def join(common: ServerInfo, info: ServerInfo, url: str, *, started: bool) -> None:
    """Changes what is known of all to what holds for this server, too. Raises ConfigError where it is not like them.

    The shortest context is the fleet's, since a trajectory must fit any server; once rollouts are played by it
    (`started`), a shorter one cannot join.
    """
    for field in _ALIKE:
        mine, theirs = getattr(common, field), getattr(info, field)
        if mine != theirs:
            raise ConfigError(f"{url} is not like the other servers: {field} is {theirs!r}, not {mine!r}")
    for field in _TOLD:
        if getattr(common, field) != (theirs := getattr(info, field)):
            # A turn's record says what holds for every server that may have sampled it.
            _log.warning("servers_differ", server=url, field=field, value=theirs)
            setattr(common, field, None)
    least, length = common.max_model_len, info.max_model_len
    if length is None or least is None:
        common.max_model_len = least if started else least or length
    elif not started:
        common.max_model_len = min(least, length)
    elif length < least:
        raise ConfigError(f"{url} has a context of {length} tokens, and the others of {least} at least")
