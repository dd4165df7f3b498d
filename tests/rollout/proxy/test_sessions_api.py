"""The recorder's own requests, and the document that describes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Mount, Route

from tests.rollout.proxy.kit import text_of
from tests.rollout.proxy.recorder_kit import recorded


def _routes(routes: Any, prefix: str = "") -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for route in routes:
        if isinstance(route, Mount):
            found |= _routes(route.routes, prefix + route.path)
        elif isinstance(route, Route):
            path = re.sub(r":\w+\}", "}", prefix + route.path)
            found |= {(method, path) for method in route.methods or () if method != "HEAD"}
    return found


async def test_the_document_describes_what_is_answered(tmp_path: Path) -> None:
    """Every route is in /openapi.json and every operation there is a route; each schema it names is there."""
    async with recorded(tmp_path / "run") as one:
        document = (await one.client.get("/openapi.json")).json()
        described = {(method.upper(), path) for path, each in document["paths"].items() for method in each}
        served = _routes(one.app._app.routes)
        assert described == {
            (method, path) for method, path in served if path not in ("/", "/r/{key}/", "/openapi.json")
        }
    named = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert named <= set(document["components"]["schemas"])
    for path, operations in document["paths"].items():
        for operation in operations.values():
            parameters = [each["name"] for each in operation.get("parameters", [])]
            assert parameters == re.findall(r"\{(\w+)\}", path)


async def test_answers_are_as_the_document_says(tmp_path: Path) -> None:
    """Each has the fields that its schema requires, and no other."""
    async with recorded(tmp_path / "run") as one:
        schemas = (await one.client.get("/openapi.json")).json()["components"]["schemas"]
        opened = await one.post("/sessions", {"task": {"a": 1}})
        text_of(await one.chat(opened["key"], "hello"))
        state = await one.post(f"/sessions/{opened['id']}/reward", {"reward": 1})
        ended = await one.post(f"/sessions/{opened['id']}/end")
        for name, answer in (("OpenedSession", opened), ("SessionState", state), ("Ended", ended)):
            assert set(answer) == set(schemas[name]["properties"]), name
        assert opened["base_url"] == "http://localhost"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/sessions", b"{", 400, "the body"),
        ("POST", "/sessions", b'{"nam": "x"}', 400, "nam"),
        ("POST", "/sessions", b'{"key": " "}', 400, "leave it out"),
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
