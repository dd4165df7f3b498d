"""The embedded server as a mixture of experts that reports them, in vLLM's words or SGLang's: over their real wire."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from transports.embedded.app import create_app
from transports.scripted import LAYERS, TOP_K, experts_of, kept_with


class Mixture(httpx.AsyncBaseTransport):
    """The embedded app behind a client, whose answers say what a server that was started so says."""

    def __init__(self, dialect: Any, *, masks: bool = True) -> None:
        """`masks`: vLLM started with --return-sampling-mask, which refuses what it could report none of."""
        self.dialect, self._masks = dialect, masks
        self.app = create_app(dialect=dialect)
        self._behind = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.refused = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Passes it on, and adds to the answer."""
        body = json.loads(await request.aread() or b"{}") if request.method == "POST" else {}
        if self.dialect == "vllm" and self._masks and _completes(request) and (why := _refusal(body)):
            self.refused += 1
            error = {"message": f"sampling distribution replay requires {why}", "type": "BadRequestError"}
            return httpx.Response(400, json={"error": error}, request=request)
        answered = await self._behind.handle_async_request(_without(request, body) if body else request)
        if answered.status_code != 200 or not _completes(request):
            return answered
        said = json.loads(await answered.aread())
        (self._vllm if self.dialect == "vllm" else self._sglang)(body, said)
        return httpx.Response(200, json=said, request=request)

    async def aclose(self) -> None:
        """Ends the embedded model."""
        self.app.state.engine.close()

    def _vllm(self, body: dict[str, Any], said: dict[str, Any]) -> None:
        choice = said["choices"][0]
        prompt = body.get("token_ids") or body.get("prompt") or said["prompt_token_ids"]
        sampling = body.get("sampling_params", body)
        rows = _rows([*prompt, *choice["token_ids"]], sampling.get("routed_experts_prompt_start", 0))
        file = io.BytesIO()
        np.save(file, rows.astype(np.uint8), allow_pickle=False)
        choice["routed_experts"] = b64encode(file.getvalue()).decode()
        if self._masks and "sampling_params" in body:
            choice["sampling_mask"] = [kept_with(one)[:3] for one in choice["token_ids"]]

    def _sglang(self, body: dict[str, Any], said: dict[str, Any]) -> None:
        choice = said["choices"][0] if "choices" in said else said
        meta = choice["meta_info"]
        prompt = body.get("input_ids") or choice["prompt_token_ids"]
        ids = choice["output_ids"] if "output_ids" in choice else choice["response_token_ids"]
        if body.get("return_routed_experts"):
            rows = _rows([*prompt, *ids], body["routed_experts_start_len"])
            meta["routed_experts"] = b64encode(rows.astype("<i4").tobytes()).decode()
        if body.get("return_sampling_mask"):
            meta["output_token_sampling_mask"] = [kept_with(one)[:3] for one in ids]


def _completes(request: httpx.Request) -> bool:
    return request.method == "POST" and request.url.path.endswith(("/generate", "/completions"))


def _refusal(body: dict[str, Any]) -> str:
    sampling = body.get("sampling_params", body)
    if not sampling.get("temperature", 1.0):
        return "temperature > 0"
    return "" if sampling.get("top_k", 0) > 0 else "top_k > 0 to bound sampling mask size"


def _rows(ids: list[int], start: int) -> NDArray[Any]:
    rows = experts_of(ids[:-1], start)
    return np.frombuffer(rows.data.data, np.uint8).reshape(-1, LAYERS, TOP_K)


def _without(request: httpx.Request, body: dict[str, Any]) -> httpx.Request:
    """As the embedded model takes it: it is no mixture."""
    names = ("return_routed_experts", "routed_experts_start_len", "return_sampling_mask", "routed_experts_prompt_start")
    kept = {name: value for name, value in body.items() if name not in names}
    if isinstance(sampling := kept.get("sampling_params"), dict):
        kept["sampling_params"] = {name: value for name, value in sampling.items() if name not in names}
    headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"content-length"]
    return httpx.Request(request.method, request.url, headers=headers, content=json.dumps(kept).encode())
