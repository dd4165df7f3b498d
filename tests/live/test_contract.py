"""Real vLLM and real Dynamo keep the contract that the double and the embedded server keep."""

from __future__ import annotations

import pytest

from tests.live.servers import Server
from tests.live.subject import Live
from tests.transports.contract import Subject, TransportContract
from transports.vllm.wire import GENERATE

pytestmark = pytest.mark.live


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


class TestDynamoByGenerate(TransportContract):
    """With a real vLLM worker behind it, by vLLM's route of ids."""

    @pytest.fixture
    def subject(self, dynamo_engine: Server) -> Subject:
        subject = Live(dynamo_engine, token_route=GENERATE)
        subject.controls_weights = subject.aborts_by_name = subject.tokenizes = False
        return subject
