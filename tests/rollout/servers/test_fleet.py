"""Several servers: what dies is taken out and its rollouts go on elsewhere; what comes back has the right weights."""

from __future__ import annotations

import math
from typing import Any

import anyio
import msgspec
import pytest

from rollout import Engine, EngineConfig
from rollout.errors import (
    ConfigError,
    ConnectionFailed,
    NoServerLeft,
    RequestRefused,
    ServerBusy,
    ServerError,
    TransportError,
)
from rollout.histogram import Histogram
from rollout.records import FailureKind, Rollout
from rollout.request import Reply, Request, TokenPrompt
from rollout.servers.fleet import MAX_DEATHS, Fleet
from rollout.servers.server import Server as FleetServer
from rollout.servers.weights import InFlight
from rollout.transport import ServerInfo, ServerLoad, Traffic
from tests.log_kit import capture_logs
from tests.rollout.test_engine import Short, collect
from transports.scripted import Entry, Fault, Held, ScriptedTransport, Stalled, reply

#: Looks come so often that a test need not wait for one.
OFTEN_S = 0.001


class Server(ScriptedTransport):
    """A scripted server whose weights can be changed."""

    def __init__(self, *entries: Entry, **options: Any) -> None:
        super().__init__([*entries, *[reply("x") for _ in range(200)]], **options)
        self._info.can_tokenize = True
        self.pushed: list[tuple[str, str | None]] = []
        self.refuses: TransportError | ConfigError | None = None
        self.paused = False
        self.checks = 0

    async def check(self) -> None:
        self.checks += 1
        await super().check()

    async def pause(self, mode: InFlight = "keep") -> None:
        self.paused = True

    async def resume(self) -> None:
        self.paused = False

    async def update_weights(self, version: str, path: str | None) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.pushed.append((version, path))


def fleet(*servers: ScriptedTransport, wait_s: float = 60.0) -> Fleet:
    members = [FleetServer(f"http://{at}", server, check_every_s=OFTEN_S) for at, server in enumerate(servers)]
    return Fleet(members, wait_s=wait_s)


def engine(*servers: ScriptedTransport, wait_s: float = 60.0, **config: Any) -> Engine:
    settings = EngineConfig(renderer="server", verify=True, **config)
    return Engine(settings, Short, transport=fleet(*servers, wait_s=wait_s))


def request(session: str = "s", **fields: Any) -> Request:
    return Request(prompt=TokenPrompt([1]), request_id="r", session_id=session, **fields)


async def until(condition: Any) -> None:
    while not condition():
        await anyio.lowlevel.checkpoint()


def sessions(server: ScriptedTransport) -> set[str]:
    return {request.session_id for request in server.requests}


class Gated(Server):
    """Answers nothing until the gate opens."""

    def __init__(self, gate: anyio.Event) -> None:
        super().__init__()
        self.gate = gate
        self.arrived: list[Request] = []

    async def generate(self, request: Request) -> Reply:
        self.arrived.append(request)
        await self.gate.wait()
        return await super().generate(request)


async def test_trajectories_are_spread_by_group_and_stay() -> None:
    """Of four groups in flight each server has two whole ones; a trajectory stays where it began."""
    gate = anyio.Event()
    servers = Gated(gate), Gated(gate)
    running = engine(*servers, concurrency=8)
    async with running, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: collect(running, 4, rollouts_per_task=2))
        await until(lambda: sum(len(server.arrived) for server in servers) == 8)
        groups = [{request.group_id for request in server.arrived} for server in servers]
        assert [len(group) for group in groups] == [2, 2]
        assert not groups[0] & groups[1]
        gate.set()
    assert [state.trajectories for state in running.stats().servers] == [0, 0]
    assert not sessions(servers[0]) & sessions(servers[1])
    assert all(len(server.requests) == 8 for server in servers)


async def test_a_dead_servers_rollouts_go_on_at_another() -> None:
    """What is in flight is sent again, whole, and goes on from its last finished turn; nothing fails."""
    dying, other = Server(reply("one"), Stalled()), Server()
    running = engine(dying, other, concurrency=1)
    async with running, anyio.create_task_group() as group:
        groups: list[Any] = []

        async def play() -> None:
            groups.extend(await collect(running, 2))

        group.start_soon(play)
        await dying.wait_for(2)
        dying.well = False
        await until(lambda: len(groups) == 2)
        assert [state.up for state in running.stats().servers] == [False, True]
    (first,) = groups[0].rollouts
    assert first.ok
    assert [turn.route.value for turn in first.turns] == ["message_in", "token_in"]
    assert other.requests[0].prompt == dying.requests[1].prompt
    assert dying.cancelled == 1


async def test_a_request_that_fails_asks_how_its_server_is() -> None:
    """The fault of a well server is the rollout's; that of a dead one is not, and nobody waits for the next look."""
    served = fleet(Server(Fault(ServerBusy("500"))), Server())
    await served.connect()
    with pytest.raises(ServerBusy):
        await served.generate(request())
    dying = Server(Fault(ConnectionFailed("refused")))
    served = fleet(dying, Server())
    await served.connect()
    dying.well = False
    assert (await served.generate(request())).completion_ids
    assert [state.deaths for state in served.states] == [1, 0]


async def test_a_server_comes_back_with_the_weights_of_the_others() -> None:
    """A new process has its first weights: it is told to load the last ones before it is used."""
    lost, other = Server(), Server()
    running = engine(lost, other)
    async with running:
        await running.update_weights(1, "folder-1")
        lost.well = False
        await until(lambda: not running.stats().servers[0].up)
        await running.update_weights(2, "folder-2")
        lost.well = True
        await until(lambda: running.stats().servers[0].up)
    assert other.pushed == [("1", "folder-1"), ("2", "folder-2")]
    assert lost.pushed == [("1", "folder-1"), ("2", "folder-2")]


async def test_a_server_whose_weights_are_unknown_stays_out() -> None:
    """Weights that a trainer loaded by itself cannot be loaded again here; the next that can be bring it back."""
    lost, other = Server(), Server()
    served = fleet(lost, other)
    await served.connect()
    await served.update_weights("1", None)
    async with anyio.create_task_group() as group:
        group.start_soon(served.watch, lambda error: None)
        lost.well = False
        await until(lambda: not served.states[0].up)
        lost.well = True
        seen = other.checks
        await until(lambda: other.checks > seen + 3)
        assert not served.states[0].up
        await served.update_weights("2", "folder")
        await until(lambda: served.states[0].up)
        group.cancel_scope.cancel()
    assert lost.pushed == [("1", None), ("2", "folder")]


async def test_a_server_that_cannot_load_is_taken_out() -> None:
    """One server's failure does not stop the others; where all fail, the update did."""
    broken, other = Server(), Server()
    broken.refuses = ConnectionFailed("no such folder")
    served = fleet(broken, other)
    await served.connect()
    await served.pause()
    await served.update_weights("1", "folder")
    await served.resume()
    assert [state.up for state in served.states] == [False, True]
    other.refuses = RequestRefused("no such folder", status=400)
    with pytest.raises(RequestRefused):
        await served.update_weights("2", "folder")
    assert served.states[1].up


async def test_a_server_comes_back_once_for_several_processes() -> None:
    """The engine's fleet gives it the weights; those of its processes use it when they hear that it is up."""
    servers = Server(), Server()
    here, there = fleet(*servers), fleet(*servers)
    here.on_change = lambda: there.follow(here.state)
    await here.connect()
    await there.connect()
    there.follow(here.state)
    servers[1].refuses = ConnectionFailed("gone")
    await here.update_weights("2", "folder")
    assert [state.up for state in there.states] == [True, False]
    async with anyio.create_task_group() as group:
        group.start_soon(there.watch, lambda error: None)
        group.start_soon(here.watch, lambda error: None)
        servers[1].refuses = None
        await until(lambda: there.states[1].up)
        assert here.states[1].up
        group.cancel_scope.cancel()
    assert servers[1].pushed == [("2", "folder")]


async def test_what_a_process_finds_dead_is_the_engines_to_bring_back() -> None:
    """Until the engine has said more it is not used there, even where it answers again at once."""
    servers = Server(), Server(Fault(ConnectionFailed("reset")))
    here, there = fleet(*servers), fleet(*servers)
    await here.connect()
    await there.connect()
    there.follow(here.state)
    servers[1].well = False
    there._placement.up[0] = False
    async with anyio.create_task_group() as group:
        group.start_soon(there.generate, request())
        await until(lambda: not there.states[1].up)
        there.follow(here.state)
        assert [state.up for state in there.states] == [True, False]
    assert len(servers[0].requests) == 1


async def test_a_pause_holds_what_comes_back() -> None:
    """Between pause and resume a server that comes back is paused before it is used."""
    servers = Server(), Server()
    served = fleet(*servers)
    await served.connect()
    await served.pause()
    async with anyio.create_task_group() as group:
        group.start_soon(served.watch, lambda error: None)
        servers[1].well = False
        await until(lambda: not served.states[1].up)
        servers[1].paused, servers[1].well = False, True
        await until(lambda: served.states[1].up)
        assert servers[1].paused
        await served.resume()
        assert not servers[1].paused
        group.cancel_scope.cancel()


async def test_with_no_server_left_the_run_waits_and_then_ends() -> None:
    """What runs is ended as cancelled, so that it is played when the run goes on; the stream says why it ended."""
    only = Server(reply("one"), Stalled())
    running = engine(only, wait_s=0.01, concurrency=1)
    seen: list[Rollout] = []

    async def keep(rollout: Rollout) -> None:
        seen.append(rollout)

    async with running, anyio.create_task_group() as group:

        async def play() -> None:
            with pytest.raises(NoServerLeft, match=r"no server came back within 0\.01 s: http://0"):
                await collect(running, 3, on_rollout=keep)

        group.start_soon(play)
        await only.wait_for(2)
        only.well = False
    assert [rollout.failure.kind for rollout in seen if rollout.failure] == [FailureKind.CANCELLED]
    assert len(seen[0].turns) == 1


async def test_who_outlives_its_servers_gives_up_what_waits_for_one() -> None:
    """Each request waits so long, and fails; one that comes later waits anew, and is answered by one that came back."""
    only = Server(reply("one"), reply("two"))
    served = fleet(only, wait_s=0.01)
    await served.connect()
    async with anyio.create_task_group() as group:
        group.start_soon(served.watch, lambda error: served.give_up())
        only.well = False
        with anyio.fail_after(10):
            for _ in range(2):
                with pytest.raises(ConnectionFailed, match=r"no server came back within 0\.01 s: http://0"):
                    await served.generate(request())
            only.well = True
            assert (await served.generate(request())).finish_reason == "stop"
        group.cancel_scope.cancel()


async def test_submitted_tasks_say_that_no_server_is_left() -> None:
    """Nobody waits for what will not come: what runs, what is queued, what is submitted later."""
    only = Server(reply("one"), Stalled())
    running = engine(only, wait_s=0.01, concurrency=1)
    async with running, anyio.create_task_group() as group:
        first, queued = await running.submit({"n": 0}), await running.submit({"n": 1})

        async def ask(result: Any) -> None:
            with pytest.raises(NoServerLeft):
                await result()

        group.start_soon(ask, queued.result)
        await only.wait_for(2)
        only.well = False
        assert [rollout.failure.kind for rollout in (await first.result()).rollouts if rollout.failure] == [
            FailureKind.CANCELLED
        ]
        await ask(lambda: running.collect(1))
        await ask(lambda: collect(running, 1))


async def test_a_server_that_is_back_in_time_is_gone_on_with() -> None:
    """A restart costs nothing but the wait."""
    only = Server(reply("one"), Stalled())
    running = engine(only, concurrency=1)
    async with running, anyio.create_task_group() as group:
        groups: list[Any] = []

        async def play() -> None:
            groups.extend(await collect(running, 1))

        group.start_soon(play)
        await only.wait_for(2)
        only.well = False
        await until(lambda: not running.stats().servers[0].up)
        only.well = True
        await until(lambda: bool(groups))
    assert groups[0].rollouts[0].ok


async def test_a_request_that_kills_servers_is_not_sent_for_ever() -> None:
    """After as many deaths the request is the suspect, and fails alone."""
    servers = [Server(Held(reply("x"))) for _ in range(MAX_DEATHS + 1)]
    served = fleet(*servers)
    await served.connect()
    async with anyio.create_task_group() as group:
        group.start_soon(served.watch, lambda error: None)

        async def kill() -> None:
            for server in servers[:MAX_DEATHS]:
                await server.wait_for(1)
                server.well = False

        group.start_soon(kill)
        with pytest.raises(ConnectionFailed, match="in flight on 3 servers when they died"):
            await served.generate(request())
        group.cancel_scope.cancel()
    assert not servers[-1].requests


async def test_what_servers_differ_in_is_not_said_of_any() -> None:
    """Where one reports its logprobs after sampling and another before, a turn's record says neither; the log does."""
    one = ScriptedTransport([]).info
    other = msgspec.structs.replace(one, logprobs_mode="processed_logprobs")
    with capture_logs() as events:
        info = await fleet(Server(info=one), Server(info=other)).connect()
    assert info.logprobs_mode is None
    assert info.sampling_defaults == one.sampling_defaults
    assert [(event["event"], event["field"]) for event in events] == [("servers_differ", "logprobs_mode")]


async def test_images_go_with_ids_where_every_server_takes_them() -> None:
    """A trajectory may go on at any of them."""
    one = msgspec.structs.replace(ScriptedTransport([]).info, image_token=7)
    with capture_logs() as events:
        info = await fleet(Server(info=one), Server(info=ScriptedTransport([]).info)).connect()
    assert info.image_token is None
    assert [event["field"] for event in events] == ["image_token"]


async def test_servers_must_be_alike() -> None:
    """Another model among them is named before anything is played."""
    other = Server(info=ServerInfo(dialect="scripted", model="other"))
    with pytest.raises(ConfigError, match="http://1 is not like the other servers: model is 'other', not 'scripted'"):
        await fleet(Server(), other).connect()


async def test_the_shortest_context_is_the_fleets() -> None:
    """A trajectory must fit whichever server it goes on at."""
    one, two = Server(), Server()
    one._info.max_model_len, two._info.max_model_len = 8192, 4096
    assert (await fleet(one, two).connect()).max_model_len == 4096
    assert one._info.max_model_len == 8192


async def test_a_server_that_is_not_there_yet_is_out() -> None:
    """The others are enough to begin; with none it is an error."""
    absent = Server(connect_error=ServerError("no server answers"))
    served = fleet(absent, Server())
    await served.connect()
    assert [state.up for state in served.states] == [False, True]
    with pytest.raises(ServerError, match="no server answers"):
        await fleet(absent).connect()


async def test_load_is_all_servers_together() -> None:
    """Queues add up, and the fullest cache counts."""
    one, two = Server(), Server()
    one.load_now = ServerLoad(running=3, waiting=1, cache_usage=0.25, preemptions=2)
    two.load_now = ServerLoad(running=4, cache_usage=0.5)
    served = fleet(one, two)
    await served.connect()
    assert await served.load() == ServerLoad(running=7, waiting=1, cache_usage=0.5, preemptions=2)


class Counted(Server):
    """Says what went over the wire, and what its server measured."""

    traffic = Traffic(sent=10, received=3)

    async def first_tokens(self) -> Histogram | None:
        return Histogram((0.5, math.inf), (1.0, 2.0))


async def test_traffic_and_first_tokens_are_all_servers_together() -> None:
    """A server that counts nothing adds nothing."""
    served = fleet(Counted(), Counted(), Server())
    await served.connect()
    assert served.traffic == Traffic(sent=20, received=6)
    assert await served.first_tokens() == Histogram((0.5, math.inf), (2.0, 4.0))
    running = Engine(EngineConfig(renderer="server"), Short, transport=served)
    async with running:
        assert running.stats().sent_bytes == 20
        assert await running.first_tokens() == Histogram((0.5, math.inf), (2.0, 4.0))
