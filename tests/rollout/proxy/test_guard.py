"""No web page's requests are answered."""

from __future__ import annotations

import pytest

from rollout.dialects.types import DialectError
from rollout.proxy.guard import Guard, host_of
from tests.rollout.proxy.kit import proxied


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "10.0.0.7:80", "agents.internal:1"])
def test_hosts_of_ours_are_answered(host: str) -> None:
    """This machine, any address in numbers, and the name that is advertised."""
    Guard(["agents.internal"]).check({"host": host})


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "127.0.0.1.nip.io"]
)
def test_a_name_that_was_made_to_resolve_here_is_refused(host: str) -> None:
    """As a page does that has a browser take this machine for its own server."""
    with pytest.raises(DialectError, match="proxy_address") as refused:
        Guard(["agents.internal"]).check({"host": host})
    assert refused.value.status == 403


def test_the_host_of_an_address() -> None:
    """Without its port, and an IPv6 address without its brackets."""
    assert [host_of(each) for each in ("A.b:1", "[::1]:1", "[::1]", "x")] == ["a.b", "::1", "::1", "x"]


async def test_a_page_in_the_browser_cannot_use_it() -> None:
    """Whatever its origin says, and with the right key, too: 403, and no turn."""
    async with proxied() as served:
        for origin in ("https://evil.example", "null", "http://localhost:3000"):
            assert (await served.chat("hello", headers={"origin": origin})).status_code == 403
        assert (await served.chat("hello", headers={"host": "evil.example"})).status_code == 403
        for whence in ("cross-site", "same-site", "same-origin"):  # an image or a script has no origin
            assert (await served.client.get("/v1/models", headers={"sec-fetch-site": whence})).status_code == 403
        assert (await served.client.get("/v1/models", headers={"sec-fetch-site": "none"})).status_code == 200
        preflight = await served.client.options("/v1/messages", headers={"origin": "https://evil.example"})
        assert preflight.status_code == 403
        assert not served.transport.requests
