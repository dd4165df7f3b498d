"""What a dialect costs: CPU of reading a request of Claude Code's size, and of writing its answer.

    python -m benchmarks.dialects [--messages 10 100 1000]

64 kB of tools, messages of about 1 kB, every second one the model's own with a tool call. Each figure is the least of
its repeats. `read` is a turn's own: what came before was read on the turns before, the last two messages are new, and
the cache mark has moved. `per kB` is what each further kB that was seen before adds, from the largest two.
"""

from __future__ import annotations

import argparse
import json
import time

from benchmarks.kit.agents import ClaudeCode, question
from rollout.chat.messages import Function, Message, ToolCall
from rollout.dialects.anthropic import Anthropic
from rollout.dialects.memory import Memory
from rollout.dialects.types import Call, Said

_REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, nargs="*", default=[10, 100, 1_000])
    sizes = list[tuple[float, float]]()
    print("messages      kB   read ms   write ms   decoded again")
    for count in parser.parse_args().messages:
        size, read, write, decoded = measured(count)
        sizes.append((size, read))
        print(f"{count:8}  {size:6.0f}  {1e3 * read:8.3f}  {1e3 * write:9.3f}  {decoded:14}")
    if len(sizes) > 1:
        (smaller, faster), (larger, slower) = sizes[-2:]
        print(f"per kB seen before: {1e6 * (slower - faster) / (larger - smaller):.2f} µs")


def measured(count: int) -> tuple[float, float, float, int]:
    """(kB of the request, seconds to read it, seconds to write its answer, items decoded), least of repeats."""
    dialect, memory, agent, number = Anthropic(), Memory(), ClaudeCode(), 0
    reads, writes = [float("inf")], [float("inf")]
    while True:
        body = agent.body()
        decoded, begun = memory.decoded, time.process_time()
        call = dialect.read(body, memory)
        took, decoded = time.process_time() - begun, memory.decoded - decoded
        said, begun = answer(call, number), time.process_time()
        frames = list(dialect.events(said, call, memory))
        wrote, number = time.process_time() - begun, number + 1
        if len(agent.messages) >= count:
            reads.append(took)
            writes.append(wrote)
            if number >= count // 2 + _REPEATS:
                assert frames
                return len(body) / 1e3, min(reads), min(writes), decoded
        agent.answered(json.loads(dialect.body(said, call, memory))["content"])


def answer(call: Call, number: int) -> Said:
    """A turn that calls one tool, of about 1 kB."""
    function = Function(call.tools[0]["function"]["name"], json.dumps({"command": question(number, 600)}))
    message = Message("assistant", "I look.", question(number, 200), (ToolCall(function=function, id="call00000"),))
    return Said(message=message, id=f"{number:032x}", created=1, prompt_tokens=1, completion_tokens=1)


if __name__ == "__main__":
    main()
