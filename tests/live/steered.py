"""A relay in front of a real server that holds each turn to a form: a tool's call, or words, in the script's order.

A model of a million parameters calls no tool by itself. Here the prompt says what is to be sampled next, and vLLM's
structured outputs do it: the server samples every id, from its own distribution, within a regular expression.

    script=bash,bash+helper,say;      three turns: a call, two calls at once, words

The script stands in the task. What was said after it tells how far a conversation is, so nothing is kept here, and a
request that is sent again is held to the same form. A conversation without a script (a title, a probe) passes as it is.

    with steered(url, model) as relay, relay.holding(2):      scripts' third turns wait here, until the block ends
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientTimeout, web
from tokenizers import Tokenizer

_SCRIPT = re.compile(r"script=([\w:,+]+);")

_WORDS = r"[a-z]{1,8}( [a-z]{1,8}){0,3}"
_ECHO = rf"echo {_WORDS}"

#: What a helper is told: a script of its own.
_ERRAND = rf"script=bash,bash,say; {_WORDS}"

#: Steps: the tool, and a regular expression for each of its arguments.
STEPS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "bash": ("bash", {"command": _ECHO}),
    "helper": ("helper", {"input": _ERRAND}),
    "submit": ("bash", {"command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"}),
    "Bash": ("Bash", {"command": _ECHO, "description": _WORDS}),
    "Agent": (
        "Agent",
        {"description": _WORDS, "prompt": _ERRAND.replace("bash", "Bash"), "subagent_type": "helper"},
    ),
    "exec": ("exec_command", {"cmd": _ECHO}),
    "spawn": ("multi_agent_v1__spawn_agent", {"message": _ERRAND.replace("bash", "exec")}),
}

_BODIES = ("/v1/chat/completions", "/v1/completions", "/inference/v1/generate")
_THOUGHT = rf"<think>\n{_WORDS}\n</think>\n\n"
_ASSISTANT = "<|im_start|>assistant\n"


def form(step: str) -> str:
    """The regular expression of one turn: `say`, a step, several joined by `+`, each after a thought with `think:`.

    Its spaces may be left out, as no template that renders a call would: text that is encoded anew has other ids.
    """
    thought, _, rest = step.rpartition(":")
    said = _WORDS if rest == "say" else r"\n".join(map(_call, rest.split("+")))
    return (_THOUGHT if thought else "") + said


def _call(step: str) -> str:
    name, arguments = STEPS[step]
    inner = r",[ ]?".join(rf'"{key}":[ ]?"{value}"' for key, value in arguments.items())
    return rf'<tool_call>\n\{{[ ]?"name":[ ]?"{name}",[ ]?"arguments":[ ]?\{{[ ]?{inner}[ ]?\}}[ ]?\}}\n</tool_call>'


class Steering:
    """Reads where a conversation stands."""

    def __init__(self, model_dir: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))

    def steer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The body, held to the form of its conversation's next turn, where it has a script."""
        if (stands := self.stands(body)) is None:
            return body
        steps, turns = stands
        step = steps[turns] if turns < len(steps) else "say"
        held = {"structured_outputs": {"regex": form(step)}}
        if path.endswith("/generate"):
            return {**body, "sampling_params": {**body["sampling_params"], **held}}
        return {**body, **held}

    def stands(self, body: Mapping[str, Any]) -> tuple[list[str], int] | None:
        """The steps of its script, and how many turns there were; None without a script."""
        if (messages := body.get("messages")) is not None:
            text = json.dumps([message["content"] for message in messages if message["role"] != "assistant"])
            turns = sum(message["role"] == "assistant" for message in messages)
        else:
            ids: list[int] = body["token_ids"] if "token_ids" in body else body["prompt"]
            text = self._tokenizer.decode(ids, skip_special_tokens=False)
            turns = text.count(_ASSISTANT) - 1
        found = _SCRIPT.search(text)
        return None if found is None else (found[1].split(","), turns)


class Relay:
    """Passes requests on, with connections of its own."""

    def __init__(self, upstream: str, steering: Steering, loop: asyncio.AbstractEventLoop) -> None:
        self.url = ""
        """Where it listens."""
        self.waiting = 0
        """Requests that are held."""
        self._upstream, self._steering = upstream, steering
        self._session: ClientSession | None = None
        self._loop = loop
        self._held_from: int | None = None
        self._let_go = asyncio.Event()

    @contextmanager
    def holding(self, turns: int) -> Iterator[None]:
        """Conversations of scripts that have had so many turns wait, each in the middle of its next."""
        self._held_from, self._let_go = turns, asyncio.Event()
        try:
            yield
        finally:
            self._held_from = None
            self._loop.call_soon_threadsafe(self._let_go.set)

    async def start(self, app: web.Application) -> None:
        self._session = ClientSession(timeout=ClientTimeout(total=None))

    async def end(self, app: web.Application) -> None:
        assert self._session is not None
        await self._session.close()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.method == "POST" and request.path in _BODIES:
            asked = json.loads(body)
            await self._hold(asked)
            body = json.dumps(self._steering.steer(request.path, asked)).encode()
        assert self._session is not None
        kept = {name: value for name, value in request.headers.items() if name.lower().startswith(("x-", "content-ty"))}
        async with self._session.request(
            request.method, f"{self._upstream}{request.path_qs}", data=body, headers=kept
        ) as answer:
            content_type = {"content-type": answer.headers.get("content-type", "application/json")}
            return web.Response(status=answer.status, body=await answer.read(), headers=content_type)

    async def _hold(self, body: Mapping[str, Any]) -> None:
        if self._held_from is None or (stands := self._steering.stands(body)) is None or stands[1] < self._held_from:
            return
        self.waiting += 1
        try:
            await self._let_go.wait()
        finally:
            self.waiting -= 1


@contextmanager
def steered(upstream: str, model_dir: Path) -> Iterator[Relay]:
    """A relay in front of a server, in a thread of its own."""
    loop = asyncio.new_event_loop()
    relay = Relay(upstream, Steering(model_dir), loop)
    app = web.Application(client_max_size=2**26)
    app.on_startup.append(relay.start)
    app.on_cleanup.append(relay.end)
    app.router.add_route("*", "/{path:.*}", relay.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)

    async def listen() -> str:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}"

    thread = threading.Thread(target=loop.run_forever, name="steered")
    thread.start()
    try:
        relay.url = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
        yield relay
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
