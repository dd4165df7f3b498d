"""The recorder's own requests, and the document that describes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rollout.proxy.kit import text_of
from tests.rollout.proxy.recorder_kit import recorded


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/sessions", b"{", 400, "the body"),
        ("POST", "/sessions", b'{"nam": "x"}', 400, "nam"),
        ("POST", "/sessions", b'{"key": " "}', 400, "leave it out"),
        ("POST", "/sessions", b'{"key": "two\\nlines"}', 400, "no header can carry it"),
        ("POST", "/sessions", '{"key": "schlüssel"}'.encode(), 400, "no header can carry it"),
        ("POST", "/sessions", b'{"task": []}', 400, "task"),
        ("POST", "/sessions", b" " * 4_096, 413, "larger"),
        ("POST", "/sessions/none/reward", b'{"reward": 1e999}', 400, "the body"),
        ("POST", "/sessions/none/reward", b'{"reward": 1}', 404, "there is no session 'none'"),
        ("POST", "/sessions/none/reward", b'{"reward": "much"}', 400, "reward"),
        ("POST", "/sessions/none/reward", b"", 400, "the body"),
        ("POST", "/sessions/none/end", b"", 404, "there is no session"),
        ("GET", "/sessions/none", b"", 404, "there is no session"),
        ("GET", "/sessions/none/samples", b"", 404, "there is no session"),
        ("DELETE", "/sessions", b"", 405, ""),
    ],
)
async def test_a_bad_request_is_told_what_is_wrong(
    tmp_path: Path, method: str, path: str, body: bytes, status: int, said: str
) -> None:
    """One line that names it; nothing is opened or changed."""
    async with recorded(tmp_path / "run", config={"proxy_body_bytes": 2_048}) as one:
        answer = await one.client.request(method, path, content=body)
        assert answer.status_code == status
        assert said in answer.json()["error"]["message"]
        assert len(one.recorder) == 0


async def test_a_token_guards_the_sessions_and_none_is_opened_without_one(tmp_path: Path) -> None:
    """Whoever has a session's key reads nothing of any session; whoever has the token opens them."""
    async with recorded(tmp_path / "run", token="secret") as one:
        assert (await one.client.post("/sessions", json={})).status_code == 401
        with_token = {"authorization": "Bearer secret"}
        made = (await one.client.post("/sessions", json={}, headers=with_token)).json()
        text_of(await one.chat(made["key"], "hello"))
        for headers in ({"authorization": f"Bearer {made['key']}"}, {"authorization": "Bearer secre"}, {}):
            assert (await one.client.get(f"/sessions/{made['id']}/samples", headers=headers)).status_code == 401
        assert (await one.client.get(f"/sessions/{made['id']}", headers=with_token)).json()["turns"] == 1
        assert (await one.chat("secret", "hello")).status_code == 401


async def test_a_web_page_reads_nothing(tmp_path: Path) -> None:
    """A request with an Origin, or for another host, is refused before it is looked at."""
    async with recorded(tmp_path / "run") as one:
        for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
            assert (await one.client.get("/sessions", headers=headers)).status_code == 403
            assert (await one.chat("k1", "hello", headers=headers)).status_code == 403
        assert len(one.recorder) == 0
