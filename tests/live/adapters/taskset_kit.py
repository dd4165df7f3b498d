"""Tasksets as a user writes them with verifiers, and answers that are recorded."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from envs.adapters.verifiers.agent import Verifiers
from rollout import Engine, EngineConfig
from rollout.chat.messages import Message
from rollout.records import Rollout
from rollout.request import Reply, Request
from transports.scripted import ScriptedTransport, reply

#: Sums with a weighted reward and a metric; one turn each.
SUMS = """
import time
import verifiers.v1 as vf


class SumData(vf.TaskData):
    answer: int


class SumTask(vf.Task[SumData]):
    @vf.reward(weight=2.0)
    async def right(self, trace: vf.Trace) -> float:
        if self.data.answer == 13:
            raise ValueError("unlucky")
        return float(trace.last_reply == str(self.data.answer))

    @vf.reward
    async def short(self, trace: vf.Trace) -> float:
        return 1 / (1 + len(trace.last_reply))

    @vf.metric
    async def chars(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply))


class SumConfig(vf.TasksetConfig):
    num_tasks: int = 64


class SumTaskset(vf.Taskset[SumTask, SumConfig]):
    def load(self):
        return [
            SumTask(SumData(prompt=f"What is {n} + 1?", system_prompt="Be short.", answer=n + 1), self.config.task)
            for n in range(20, 20 + self.config.num_tasks)
        ]


__all__ = ["SumTaskset"]
"""

#: A user who asks three times; the environment is the taskset's own.
TALK = """
import verifiers.v1 as vf


class TalkTask(vf.Task[vf.TaskData]):
    @vf.reward
    async def said(self, trace: vf.Trace) -> float:
        return sum("yes" in (message.content or "") for message in trace.assistant_messages) / 3


class TalkEnv(vf.SingleAgentEnv):
    async def run(self, task, agents):
        async with agents.agent.interaction(task) as interaction:
            for word in ("Really?", "Sure?", "Again?"):
                if (await interaction.turn(word)).terminated:
                    break


class TalkTaskset(vf.Taskset[TalkTask, vf.TasksetConfig]):
    INFINITE = True

    def load(self):
        number = 0
        while True:
            yield TalkTask(vf.TaskData(prompt=None, system_prompt=f"You are {number}.", name=str(number)))
            number += 1


__all__ = ["TalkEnv", "TalkTaskset"]
"""

#: Two seats, one of which is not trained on.
DUET = """
import asyncio
import verifiers.v1 as vf


class DuetTask(vf.Task[vf.TaskData]):
    @vf.reward
    async def length(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply))


class DuetConfig(vf.EnvConfig):
    a: vf.AgentConfig = vf.AgentConfig(harness=vf.HarnessConfig(id="null"))
    b: vf.AgentConfig = vf.AgentConfig(harness=vf.HarnessConfig(id="null"))


class DuetEnv(vf.Env[DuetConfig]):
    async def setup(self, agents):
        agents.b.trainable = False

    async def run(self, task, agents):
        await agents.a.run(task)
        await agents.b.run(task)


class DuetTaskset(vf.Taskset[DuetTask, vf.TasksetConfig]):
    def load(self):
        return [DuetTask(vf.TaskData(prompt="Go."))]


__all__ = ["DuetEnv", "DuetTaskset"]
"""

#: A tool that all rollouts share, and one for each.
TOOLS = '''
import verifiers.v1 as vf


class Shop(vf.Toolset[vf.SharedToolsetConfig]):
    TOOL_PREFIX = "shop"

    @vf.tool
    def price(self, thing: str) -> str:
        """What it costs.

        Args:
            thing: Its name.
        """
        if thing == "air":
            raise ValueError("not for sale")
        return f"{thing} costs {len(thing)}"


class ShopTask(vf.Task[vf.TaskData]):
    @vf.reward
    async def asked(self, trace: vf.Trace) -> float:
        return float(any("bread costs 5" in str(message.content) for message in trace.tool_messages))


class ShopTaskset(vf.Taskset[ShopTask, vf.TasksetConfig]):
    @classmethod
    def toolsets(cls, config):
        return [Shop(vf.SharedToolsetConfig())]

    def load(self):
        return [ShopTask(vf.TaskData(prompt=f"What does bread cost? ({n})")) for n in range(16)]


__all__ = ["ShopTaskset"]

if __name__ == "__main__":
    Shop.run()
'''

#: As people wrote them for earlier releases: a module that has `load_environment`.
MADE = """
import verifiers.v1 as vf
import sums


def load_environment(num_tasks: int = 3, harness: str = "rollout_chat") -> vf.Env:
    config = {"taskset": {"id": "sums", "num_tasks": num_tasks}}
    return vf.load_environment(vf.SingleAgentEnvConfig.model_validate(config))
"""

#: Rows whose fields are more than text.
ROWS = """
import verifiers.v1 as vf


class RowData(vf.TaskData):
    pairs: dict[str, list[int]] = {}
    note: str | None = None


class RowTask(vf.Task[RowData]):
    pass


class RowTaskset(vf.Taskset[RowTask, vf.TasksetConfig]):
    def load(self):
        said = [vf.SystemMessage(content="Be short."), vf.UserMessage(content="Hello.")]
        more = [vf.AssistantMessage(content="Yes?"), vf.UserMessage(content=[vf.TextContentPart(text="Go on.")])]
        limits = {"timeout": vf.TaskTimeout(agent=5), "resources": vf.TaskResources(cpu=1)}
        return [
            RowTask(RowData(prompt=[*said, *more], pairs={"a": [1, 2]}, network_allow=["*"], **limits)),
            RowTask(RowData(prompt="Hello.", note="", name="second")),
        ]


__all__ = ["RowTaskset"]
"""

#: A taskset whose start takes longer than anybody waits, one that breaks, and one of an earlier release.
SLOW = TALK.replace(
    "class TalkEnv(vf.SingleAgentEnv):",
    """class TalkEnv(vf.SingleAgentEnv):
    async def start(self):
        import asyncio
        await asyncio.sleep(600)
""",
)
BREAKS = "raise RuntimeError('no licence')\n"
LOOSE = ROWS.replace("vf.Taskset[RowTask", "vf.Taskset[vf.Task[RowData]")
OLDER = "import verifiers as vf\n\nclass Mine(vf.MultiTurnEnv):\n    pass\n"

#: A harness of a taskset's own: a program that does not end.
SLEEPER = """
from pathlib import Path
import verifiers.v1 as vf

PIDS = Path(__file__).with_name("pids")


class SleepHarness(vf.Harness[vf.HarnessConfig]):
    NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        return await runtime.run_program(["sh", "-c", f"echo $$ >> {PIDS}; exec sleep 600"], {})


class SleepTaskset(vf.Taskset[vf.Task, vf.TasksetConfig]):
    def load(self):
        return [vf.Task(vf.TaskData(prompt=f"Sleep {n}.")) for n in range(4)]


__all__ = ["SleepHarness", "SleepTaskset"]
"""

FILES = {
    "sums.py": SUMS,
    "talk.py": TALK,
    "duet.py": DUET,
    "shop.py": TOOLS,
    "made.py": MADE,
    "slow.py": SLOW,
    "sleeper.py": SLEEPER,
    "rows.py": ROWS,
    "breaks.py": BREAKS,
    "older.py": OLDER,
    "loose.py": LOOSE,
}


class Calling(ScriptedTransport):
    """A server that reads an answer which is a JSON object as a call: a name, and arguments."""

    async def generate(self, request: Request) -> Reply:
        """Its reply, with the call."""
        got = await super().generate(request)
        text = got.message.text if got.message is not None else ""
        if not text.startswith("{"):
            return got
        given = json.loads(text)
        function = {"name": given["name"], "arguments": json.dumps(given["arguments"])}
        calls = [{"id": "call_0", "type": "function", "function": function}]
        message = Message.of({"role": "assistant", "content": "", "tool_calls": calls})
        return msgspec.structs.replace(got, message=message)


async def played(
    answers: Sequence[Any], taskset: str, tasks: Sequence[Any] = (), *, config: EngineConfig | None = None, **given: Any
) -> list[Rollout]:
    """Rollouts whose model says these things, one after another."""
    make = functools.partial(Verifiers, taskset, **given)
    transport = Calling([reply(answer) if isinstance(answer, str) else answer for answer in answers])
    async with Engine(config or EngineConfig(concurrency=1), make, transport=transport) as engine:
        groups = [group async for group in engine.stream(list(tasks or make().tasks(1, 0)))]
    return [rollout for group in groups for rollout in group.rollouts]


@asynccontextmanager
async def engine_of(taskset: str, transport: Any, config: EngineConfig, **given: Any) -> AsyncIterator[Engine]:
    """An engine whose agent plays a taskset."""
    async with Engine(config, functools.partial(Verifiers, taskset, **given), transport=transport) as engine:
        yield engine
