"""The document that describes what a recorder answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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
            (method, path) for method, path in served if path not in ("/", "/r/{key}", "/r/{key}/", "/openapi.json")
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
