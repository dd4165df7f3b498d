"""Real vLLM and real Dynamo keep the contract that the double and the embedded server keep."""

from __future__ import annotations

from typing import Any

import pytest

from rollout.transport import Transport, TransportConfig
from tests.live.servers import Server, free_port
from tests.transports.contract import Subject, TransportContract
from transports import auto

pytestmark = pytest.mark.live


class Live(Subject):
    """A server that all live tests share: it is left as it was found."""

    def __init__(self, server: Server) -> None:
        self.url = server.url

    async def open(self, **config: Any) -> Transport:
        return await auto.open(TransportConfig(base_url=self.url, **config))

    async def open_nowhere(self) -> Transport:
        return await auto.open(TransportConfig(base_url=f"http://127.0.0.1:{free_port()}"))


class TestVllm(TransportContract):
    @pytest.fixture
    def subject(self, vllm: Server) -> Subject:
        return Live(vllm)


class TestDynamo(TransportContract):
    """With the mocker behind it, which samples at random and computes no logprobs."""

    @pytest.fixture
    def subject(self, dynamo: Server) -> Subject:
        subject = Live(dynamo)
        subject.controls_weights = subject.aborts_by_name = subject.tokenizes = subject.samples = False
        return subject
