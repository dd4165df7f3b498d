"""What every transport must do, as one suite: over real servers, the embedded one, the double, and yours.

A transport of another distribution is held to it by a subject, which says how it is opened, and a fixture. Tests are
not in the wheel: copy this file, or run from a checkout.

    class Mine(Subject):
        def __init__(self, server):
            self.server = server

        async def open(self, **config):
            return await my_package.open(TransportConfig(base_url=self.server.url, **config))

        async def open_nowhere(self):
            return await my_package.open(TransportConfig(base_url="http://127.0.0.1:9"))

        async def leave(self):
            await self.server.stop()

    class TestMine(TransportContract):
        @pytest.fixture
        def subject(self):
            with my_package.serving() as server:  # a new one for each test: one of them ends it
                yield Mine(server)

What a server cannot do is said by the subject's flags, and then the suite holds it to saying so. Without `open_nowhere`
and `leave` the tests of a server that is not there, or goes, are skipped.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from rollout.chat.messages import user
from rollout.errors import ConfigError, ConnectionFailed, PromptTooLong, RequestRefused, ServerError, TransportError
from rollout.request import MessagePrompt, Reply, Request, TokenPrompt
from rollout.transport import InFlight, Transport

HELLO = MessagePrompt(messages=[user("Hello. Who are you?")])

#: How long anything may take that is to happen; a server on a busy machine is slow.
SOON_S = 60.0

_numbers = itertools.count()


class Subject(ABC):
    """A transport under test, and the server behind it."""

    controls_weights = True
    """Whether it can be paused, and its weights changed."""
    aborts_by_name = True
    tokenizes = True
    samples = True
    """Whether what it samples depends on the prompt, and has logprobs: a simulator's has not."""
    reports_experts = False
    """Whether it serves a mixture of experts, and reports which of them each token was routed to."""
    reports_masks = False
    """Whether it reports, token-in, the ids that each token was drawn from."""

    @abstractmethod
    async def open(self, **config: Any) -> Transport:
        """A new transport to the server. `config` are fields of `TransportConfig`."""

    async def open_nowhere(self) -> Transport:
        """The same where no server is."""
        raise NotImplementedError

    async def leave(self) -> None:
        """Ends the server."""
        raise NotImplementedError

    def expect(self, transport: Transport, request: Request) -> None:  # noqa: B027  # servers know by themselves
        """Called before each request: a double is told here what a server knows by itself."""


def request_of(prompt: TokenPrompt | MessagePrompt, **fields: Any) -> Request:
    """A greedy request of a few tokens."""
    number = next(_numbers)
    own: dict[str, Any] = {"max_tokens": 4, "sampling": {"temperature": 0}, **fields}
    return Request(prompt=prompt, request_id=f"contract-{number}", session_id="contract", **own)


def long_request() -> Request:
    """One that runs until it is ended."""
    return request_of(TokenPrompt([1, 2, 1]), max_tokens=3000, sampling={"temperature": 0, "ignore_eos": True})


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Returns when it holds."""
    with anyio.fail_after(SOON_S):
        while not await condition():  # noqa: ASYNC110  # what is asked is a server
            await anyio.sleep(0.01)


async def _is(value: bool) -> bool:
    return value


class TransportContract:
    """The suite. A subclass has a fixture `subject`."""

    @asynccontextmanager
    async def opened(self, subject: Subject, **config: Any) -> AsyncIterator[Transport]:
        transport = await subject.open(**config)
        try:
            with anyio.fail_after(4 * SOON_S):
                yield transport
        finally:
            with anyio.CancelScope(shield=True):
                await transport.aclose()

    async def ask(
        self, subject: Subject, transport: Transport, prompt: TokenPrompt | MessagePrompt, **fields: Any
    ) -> Reply:
        request = request_of(prompt, **fields)
        subject.expect(transport, request)
        return await transport.generate(request)

    async def running(self, transport: Transport, count: int) -> None:
        """Returns when so many requests are in flight on the server."""

        async def are_there() -> bool:
            load = await transport.load()
            return (load.running or 0) + (load.waiting or 0) == count

        await until(are_there)

    async def test_it_is_ready_when_it_is_open(self, subject: Subject) -> None:
        """What the server is was found out, and it answers that it is well, before anything was sent."""
        async with self.opened(subject) as transport:
            info = transport.info
            assert info.model in info.models
            assert info.dialect
            assert info.token_route in info.token_routes
            await transport.check()
            await transport.load()
            await transport.first_tokens()
            transport.release("never sent anything")

    async def test_both_ways_in_answer_ids_with_their_logprobs(self, subject: Subject) -> None:
        """Message-in, and token-in on what came back: one logprob for each id, and the prompt as the server had it."""
        async with self.opened(subject) as transport:
            first = await self.ask(subject, transport, HELLO)
            self.must_be_whole(subject, first)
            assert first.prompt_ids
            assert first.completion_ids is not None
            longer = TokenPrompt([*first.prompt_ids, *first.completion_ids, *first.prompt_ids])
            second = await self.ask(subject, transport, longer)
            self.must_be_whole(subject, second)
            assert second.prompt_tokens in (None, len(longer.ids))
            assert second.prompt_ids in (None, list(longer.ids))

    def must_be_whole(self, subject: Subject, reply: Reply) -> None:
        assert reply.completion_ids is not None
        assert reply.logprobs is not None
        assert 0 < len(reply.completion_ids) == len(reply.logprobs) <= 4
        if subject.samples:
            assert all(-math.inf < logprob <= 0 for logprob in reply.logprobs)
        assert all(type(one) is int for one in reply.completion_ids)

    async def test_routed_experts_come_where_they_are_asked_for(self, subject: Subject) -> None:
        """A row for each position but the last, on both ways in; from where they are asked for, and the same there."""
        async with self.opened(subject, routed_experts=True) as transport:
            assert transport.info.reports_routed_experts is subject.reports_experts
            unasked = await self.ask(subject, transport, HELLO)
            first = await self.ask(subject, transport, HELLO, routed_experts_from=0)
            assert unasked.routed_experts is None
            if not subject.reports_experts:
                assert first.routed_experts is None
                return
            ids = [*(first.prompt_ids or ()), *(first.completion_ids or ())]
            longer = TokenPrompt([*ids, *ids])
            known = len(ids) - 1
            rest = await self.ask(subject, transport, longer, routed_experts_from=known)
            whole = await self.ask(subject, transport, longer, routed_experts_from=0)
            assert first.routed_experts is not None
            assert rest.routed_experts is not None
            assert whole.routed_experts is not None
            for reply, start in ((rest, known), (whole, 0)):
                assert reply.routed_experts is not None
                assert reply.routed_experts.rows == len(longer.ids) + len(reply.completion_ids or ()) - 1 - start
            assert whole.routed_experts.part(0, known) == first.routed_experts
            positions = len(longer.ids)
            assert whole.routed_experts.part(known, positions) == rest.routed_experts.part(0, positions - known)

    async def test_sampling_masks_come_where_they_are_asked_for(self, subject: Subject) -> None:
        """The ids that each token was drawn from, which it is one of; no more of them than the filters leave."""
        sampling = {"temperature": 1.0, "top_k": 3}
        async with self.opened(subject, sampling_mask=True) as transport:
            assert transport.info.reports_sampling_mask is subject.reports_masks
            prompt = TokenPrompt([1, 2, 1])
            reply = await self.ask(subject, transport, prompt, sampling=sampling, sampling_mask=True)
            unasked = await self.ask(subject, transport, prompt, sampling=sampling)
            assert unasked.sampling_mask is None
            if not subject.reports_masks:
                assert reply.sampling_mask is None
                return
            assert reply.sampling_mask is not None
            assert reply.sampling_mask.tokens == len(reply.completion_ids or ())
            kept, offsets = reply.sampling_mask.arrays()
            for at, sampled in enumerate(reply.completion_ids or ()):
                assert sampled in kept[offsets[at] : offsets[at + 1]]
                assert offsets[at + 1] - offsets[at] <= 3

    async def test_length_ends_a_completion(self, subject: Subject) -> None:
        """As many tokens as were asked for, and the reason."""
        async with self.opened(subject) as transport:
            sampling = {"temperature": 0, "min_tokens": 3}
            reply = await self.ask(subject, transport, TokenPrompt([1, 2, 1]), max_tokens=3, sampling=sampling)
            assert len(reply.completion_ids or ()) == 3
            assert reply.finish_reason == "length"

    async def test_a_stop_token_ends_a_completion(self, subject: Subject) -> None:
        """It is the last id, or left out, as the server was seen to do it when it was opened."""
        if not subject.samples:
            pytest.skip("what it samples is no function of the prompt")
        async with self.opened(subject) as transport:
            first = await self.ask(subject, transport, TokenPrompt([1, 2, 1]), max_tokens=1)
            assert first.completion_ids
            stop = first.completion_ids[0]
            reply = await self.ask(subject, transport, TokenPrompt([1, 2, 1]), stop_token_ids=[stop])
            assert reply.finish_reason == "stop"
            assert reply.completion_ids == ([] if transport.info.keeps_stop_token is False else [stop])
            assert len(reply.logprobs or ()) == len(reply.completion_ids or ())

    async def test_many_at_once(self, subject: Subject) -> None:
        """Each gets an answer of its own."""
        replies: list[Reply] = []
        async with self.opened(subject) as transport, anyio.create_task_group() as group:

            async def one(number: int) -> None:
                replies.append(await self.ask(subject, transport, TokenPrompt([1, 2, number])))

            for number in range(16):
                group.start_soon(one, number)
        assert len(replies) == 16
        for reply in replies:
            self.must_be_whole(subject, reply)

    async def test_cancelling_ends_the_request_on_the_server(self, subject: Subject) -> None:
        """Nothing goes on there, and the next request is answered."""
        async with self.opened(subject) as transport:
            async with anyio.create_task_group() as group:
                self.start(subject, transport, group)
                await self.running(transport, 1)
                group.cancel_scope.cancel()
            await self.running(transport, 0)
            self.must_be_whole(subject, await self.ask(subject, transport, HELLO))

    def start(self, subject: Subject, transport: Transport, group: Any, ended: list[Reply] | None = None) -> Request:
        """Starts a request that runs until it is ended; its answer goes to `ended`."""
        request = long_request()
        subject.expect(transport, request)

        async def run() -> None:
            reply = await transport.generate(request)
            if ended is not None:
                ended.append(reply)

        group.start_soon(run)
        return request

    async def test_a_request_can_be_aborted_by_its_name(self, subject: Subject) -> None:
        """It answers what it has, and why it ended; other names are passed over, and no name is no request."""
        async with self.opened(subject) as transport, anyio.create_task_group() as group:
            await transport.abort(["no such request"])
            if not subject.aborts_by_name:
                return
            ended: list[Reply] = []
            request = self.start(subject, transport, group, ended)
            await self.running(transport, 1)
            await transport.abort([])
            await self.running(transport, 1)
            await transport.abort(["no such request", request.request_id])
            await self.running(transport, 0)
        assert [reply.finish_reason for reply in ended] == ["abort"]
        assert len(ended[0].completion_ids or ()) == len(ended[0].logprobs or ())

    async def test_a_pause_keeps_what_runs(self, subject: Subject) -> None:
        """Nothing is sampled until `resume`, also of what is sent meanwhile; the server says that it is well."""
        async with self.opened(subject) as transport:
            if not subject.controls_weights:
                with pytest.raises(ConfigError, match="cannot be changed"):
                    await transport.pause()
                with pytest.raises(ConfigError, match="cannot be changed"):
                    await transport.resume()
                return
            replies: list[Reply] = []

            async def late() -> None:
                replies.append(await self.ask(subject, transport, HELLO))

            async with self.paused(transport, "keep"), anyio.create_task_group() as group:
                group.start_soon(late)
                for _ in range(3):
                    await transport.check()
                assert not replies
                await transport.resume()
            assert len(replies) == 1

    @asynccontextmanager
    async def paused(self, transport: Transport, mode: InFlight) -> AsyncIterator[None]:
        """A server that others use too goes on again, whatever came of the test."""
        try:
            await transport.pause(mode)
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await transport.resume()

    async def test_a_pause_aborts_what_runs(self, subject: Subject) -> None:
        """It answers what it has, and why it ended."""
        if not subject.controls_weights:
            return
        ended: list[Reply] = []
        async with self.opened(subject) as transport:
            async with anyio.create_task_group() as group:
                self.start(subject, transport, group, ended)
                await self.running(transport, 1)
                async with self.paused(transport, "abort"):
                    await until(lambda: _is(bool(ended)))
            assert [reply.finish_reason for reply in ended] == ["abort"]
            self.must_be_whole(subject, await self.ask(subject, transport, HELLO))

    async def test_a_pause_waits_for_what_runs(self, subject: Subject) -> None:
        """It returns when nothing is in flight any more."""
        if not subject.controls_weights:
            return
        paused = anyio.Event()
        async with self.opened(subject) as transport, anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as requests:
                    self.start(subject, transport, requests)
                    await self.running(transport, 1)

                    async def pause() -> None:
                        async with self.paused(transport, "wait"):
                            paused.set()

                    group.start_soon(pause)
                    await transport.check()
                    assert not paused.is_set()
                    scope.cancel()
            with anyio.fail_after(SOON_S):
                await paused.wait()

    async def test_weights_have_a_version(self, subject: Subject) -> None:
        """Where the server reports versions, what is sampled after an update says the new one."""
        async with self.opened(subject) as transport:
            if not subject.controls_weights:
                with pytest.raises(ConfigError, match="cannot be changed"):
                    await transport.update_weights("contract-1", None)
                return
            async with self.paused(transport, "keep"):
                await transport.update_weights("contract-1", None)
            reply = await self.ask(subject, transport, TokenPrompt([1, 2, 1]))
            if transport.info.reports_weight_versions:
                assert [span.version for span in reply.weight_versions] == ["contract-1"]
                assert reply.weight_versions[0].end == len(reply.completion_ids or ())

    async def test_the_servers_own_ids(self, subject: Subject) -> None:
        """It tokenizes messages as it prompts with them; where it has no such route, the error names the remedy."""
        async with self.opened(subject) as transport:
            assert transport.info.can_tokenize is subject.tokenizes
            if not subject.tokenizes:
                with pytest.raises(TransportError, match="--tokenizer"):
                    await transport.tokenize(HELLO, add_generation_prompt=True)
                with pytest.raises(TransportError, match="--tokenizer"):
                    await transport.detokenize([1])
                return
            ids = await transport.tokenize(HELLO, add_generation_prompt=True)
            assert ids == (await self.ask(subject, transport, HELLO)).prompt_ids
            assert "Who are you?" in await transport.detokenize(ids)
            shorter = await transport.tokenize(HELLO, add_generation_prompt=False)
            assert shorter == ids[: len(shorter)]
            assert len(shorter) < len(ids)

    async def test_a_refusal_is_said_and_harms_nothing(self, subject: Subject) -> None:
        """A parameter that cannot be is the request's fault; it is not asked for again, and the server is well."""
        async with self.opened(subject) as transport:
            with pytest.raises(RequestRefused) as caught:
                await self.ask(subject, transport, TokenPrompt([1, 2, 1]), sampling={"temperature": -1.0})
            assert not caught.value.retryable
            assert caught.value.status is None or 400 <= caught.value.status < 500
            await transport.check()

    async def test_a_prompt_that_does_not_fit_is_told_apart(self, subject: Subject) -> None:
        """It would not fit any server."""
        async with self.opened(subject) as transport:
            longest = transport.info.max_model_len
            if longest is None:
                pytest.skip("it does not say how long a prompt may be")
            with pytest.raises(PromptTooLong):
                await self.ask(subject, transport, TokenPrompt([1] * (longest + 8)))

    async def test_closed_is_closed(self, subject: Subject) -> None:
        """Closing twice is closing; whatever is asked later is a connection that failed."""
        transport = await subject.open()
        await transport.aclose()
        await transport.aclose()
        asked: list[Callable[[], Awaitable[Any]]] = [
            lambda: self.ask(subject, transport, HELLO),
            transport.check,
            transport.load,
        ]
        if subject.tokenizes:
            asked.append(lambda: transport.detokenize([1]))
        if subject.controls_weights:
            asked.append(transport.pause)
        for ask in asked:
            with pytest.raises(ConnectionFailed):
                await ask()

    async def test_where_no_server_is_opening_says_so(self, subject: Subject) -> None:
        """It is a ServerError, in one line, and never one of a request's errors."""
        try:
            with pytest.raises(ServerError) as caught:
                await subject.open_nowhere()
        except NotImplementedError:
            pytest.skip("it is in this process")
        assert "\n" not in str(caught.value)

    async def test_a_server_that_goes_is_a_connection_that_fails(self, subject: Subject) -> None:
        """By whatever is asked of it: that is how it is told from one that refuses."""
        async with self.opened(subject, retries=0) as transport:
            try:
                await subject.leave()
            except NotImplementedError:
                pytest.skip("it is not ours to end, or in this process")
            asked: list[Callable[[], Awaitable[Any]]] = [
                lambda: self.ask(subject, transport, HELLO),
                transport.check,
                transport.load,
                transport.first_tokens,
            ]
            if subject.controls_weights:
                asked += [transport.pause, transport.resume, lambda: transport.update_weights("2", None)]
            for ask in asked:
                with pytest.raises(ConnectionFailed) as caught:
                    await ask()
                assert caught.value.retryable
