"""Every transport that ships keeps one contract: the double as well as the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import anyio
import pytest

from rollout.errors import RequestRefused
from rollout.request import Reply, Request
from rollout.transport import ServerInfo, Transport, TransportConfig, opened
from tests.live.servers import free_port
from tests.local_server import serving
from tests.transports.contract import Subject, TransportContract
from tests.transports.mixture import Mixture
from transports import auto
from transports.embedded import MODEL_DIR
from transports.embedded.app import create_app
from transports.embedded.engine import Engine
from transports.embedded.model import Model
from transports.embedded.transport import open as open_embedded
from transports.http.client import HttpClient
from transports.scripted import Fault, ScriptedTransport, Stalled, reply
from transports.sglang import transport as sglang
from transports.vllm import transport as vllm
from transports.vllm.wire import GENERATE


class Double(Subject):
    """The double, told before each request what a server would answer."""

    def __init__(self, *, weights: bool) -> None:
        self.controls_weights = self.reports_experts = self.reports_masks = weights
        self.transports: list[ScriptedTransport] = []

    async def open(self, **config: Any) -> Transport:
        info = ServerInfo(
            dialect="scripted",
            model="scripted",
            models=["scripted"],
            token_route="scripted",
            token_routes=["scripted"],
            reports_prompt_ids=True,
            reports_completion_ids=True,
            can_tokenize=True,
            reports_routed_experts=self.reports_experts,
            reports_sampling_mask=self.reports_masks,
        )
        weights, fields = self.controls_weights, self.reports_experts
        self.transports.append(ScriptedTransport([], info=info, weights=weights, fields=fields))
        return await opened(self.transports[-1])

    async def open_nowhere(self) -> Transport:
        transport = ScriptedTransport([])
        transport.well = False
        return await opened(transport)

    async def leave(self) -> None:
        for transport in self.transports:
            transport.well = False

    def expect(self, transport: Transport, request: Request) -> None:
        assert isinstance(transport, ScriptedTransport)
        sampling = request.sampling
        if sampling.get("temperature", 0) < 0:
            transport.add(Fault(RequestRefused("temperature must be non-negative", status=400)))
        elif sampling.get("ignore_eos"):
            transport.add(Stalled())
        elif request.stop_token_ids:
            transport.add(reply(completion_ids=[ord("x")]))
        else:
            transport.add(reply("x" * (request.max_tokens or 1), finish_reason="length"))


class InProcess(Subject):
    """The embedded model, with no socket between."""

    def __init__(self, dialect: str, **config: Any) -> None:
        self.dialect, self._config = dialect, config
        self.controls_weights = self.aborts_by_name = self.tokenizes = dialect != "dynamo"

    async def open(self, **config: Any) -> Transport:
        return await open_embedded(TransportConfig(options={"dialect": self.dialect}, **self._config, **config))


class OverHttp(Subject):
    """The embedded model behind a real port, told apart by asking."""

    def __init__(self, url: str, dialect: str, stack: ExitStack) -> None:
        self.url, self._stack = url, stack
        self.controls_weights = self.aborts_by_name = self.tokenizes = dialect != "dynamo"

    async def open(self, **config: Any) -> Transport:
        return await auto.open(TransportConfig(base_url=self.url, **config))

    async def open_nowhere(self) -> Transport:
        return await auto.open(TransportConfig(base_url=f"http://127.0.0.1:{free_port()}"))

    async def leave(self) -> None:
        await anyio.to_thread.run_sync(self._stack.close)


class TestDouble(TransportContract):
    @pytest.fixture(params=[True, False], ids=["weights", "fixed"])
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        return Double(weights=request.param)


class TestInProcess(TransportContract):
    @pytest.fixture(params=["vllm", "sglang", "dynamo"])
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        return InProcess(request.param)


class TestDynamoByGenerate(TransportContract):
    """Dynamo's other route of ids keeps the same contract."""

    @pytest.fixture
    def subject(self) -> Subject:
        return InProcess("dynamo", token_route=GENERATE)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load(MODEL_DIR)


class TestOverHttp(TransportContract):
    @pytest.fixture(params=["vllm", "sglang", "dynamo"])
    def subject(self, request: pytest.FixtureRequest, model: Model) -> Iterator[Subject]:
        with ExitStack() as stack:
            engine = Engine(model)
            stack.callback(engine.close)
            url = stack.enter_context(serving(create_app(engine=engine, dialect=request.param)))
            yield OverHttp(url, request.param, stack)


class OverMixture(Subject):
    """The embedded model as a mixture of experts, in a dialect's own words."""

    reports_experts = reports_masks = True

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect

    async def open(self, **config: Any) -> Transport:
        client = HttpClient("http://x", transport=Mixture(self.dialect), retries=0)
        opened_by = vllm.open if self.dialect == "vllm" else sglang.open
        return await opened_by(TransportConfig(base_url="http://x", **config), client)


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
class TestMixture:
    """What the embedded model cannot show by itself."""

    async def test_routed_experts_come_where_they_are_asked_for(self, dialect: str) -> None:
        """As of any server that has them."""
        await MixtureContract().test_routed_experts_come_where_they_are_asked_for(OverMixture(dialect))

    async def test_sampling_masks_come_where_they_are_asked_for(self, dialect: str) -> None:
        """As of any server that has them."""
        await MixtureContract().test_sampling_masks_come_where_they_are_asked_for(OverMixture(dialect))


class MixtureContract(TransportContract):
    """Such a vLLM refuses a greedy request, and one without a top_k."""

    __test__ = False

    async def ask(self, subject: Subject, transport: Transport, prompt: Any, **fields: Any) -> Reply:
        """Of the likeliest token, where nothing else is said."""
        return await super().ask(subject, transport, prompt, **{"sampling": {"top_k": 1}, **fields})
