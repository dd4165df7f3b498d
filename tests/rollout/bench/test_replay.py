"""The environment's side of a recorded conversation, as it can be said again."""

from __future__ import annotations

from rollout.bench.replay import Replay, as_said, script_of
from rollout.chat.messages import Message, system, tool, user
from rollout.records import Rollout, Route, Turn
from rollout.tokens.trajectory import Root

TOOLS = [{"type": "function", "function": {"name": "add"}}]


def assistant(text: str) -> Message:
    return Message("assistant", text)


def rollout(messages: list[Message], lengths: list[int]) -> Rollout:
    turns = [Turn(route=Route.TOKEN_IN, completion_tokens=length) for length in lengths]
    roots = [Root(tools=TOOLS)]
    return Rollout(id="0", task_id="0", task_index=0, member=0, messages=messages, turns=turns, roots=roots)


def test_a_script_is_what_the_environment_said_and_how_long_the_model_was() -> None:
    """Few-shot answers belong to the opening; what came after the last turn is not said again."""
    opening = [system("s"), user("example"), assistant("shown"), user("question")]
    played = [*opening, assistant("a"), user("go on"), assistant("b"), user("thanks")]
    script = script_of(rollout(played, [5, 7]))
    assert script is not None
    assert script.opening == opening
    assert script.answers == [[user("go on")]]
    assert script.lengths == [5, 7]
    env = Replay([script])
    assert env.reset({"index": 3}) == opening
    assert (env.tools, env.max_tokens) == (TOOLS, 5)
    assert env.step(assistant("other")).messages == [user("go on")]
    assert env.max_tokens == 7
    assert env.step(assistant("other")).done


def test_results_of_tools_are_said_as_a_users_message() -> None:
    """The calls that they answered are not in the conversation any more."""
    said = as_said([tool("1", call="x"), tool("2", call="y"), user("so?")])
    assert said == [user("1\n2\nso?")]
    picture = Message(role="user", content=({"type": "image_url", "image_url": {"url": "u"}},))
    assert as_said([user("look"), picture, user("and?")]) == [user("look"), picture, user("and?")]
    assert as_said([]) == [user("")]


def test_a_conversation_that_was_rewritten_is_the_one_it_ended_with() -> None:
    """Three turns were played, and the summary that replaced two of them is its opening."""
    script = script_of(rollout([user("summary"), assistant("c")], [3, 4, 9]))
    assert script is not None
    assert (script.opening, script.answers, script.lengths) == ([user("summary")], [], [9])
    assert script_of(rollout([user("nothing sampled")], [])) is None
