"""The planner finds the longest prefix, names every fallback, and reads an old message once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from rollout.chat.canonical import digest
from rollout.chat.messages import Message, user
from rollout.tokens.prefix import Extend, Fallback, FallbackReason, LastTurn, Planner, tail_fault
from rollout.tokens.trajectory import Trajectory, ids_array

TOOLS = [{"type": "function", "function": {"name": "add"}}]


class Played:
    """A trajectory that grows by planned turns, with made-up ids."""

    def __init__(self) -> None:
        self.tree = Trajectory()
        self.planner = Planner(self.tree)
        self.last: LastTurn | None = None

    def plan(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), **args: Any
    ) -> Extend | Fallback:
        return self.planner.plan(self.planner.prompt(messages, tools, args, self.last), self.last)

    def turn(self, messages: Sequence[Message], text: str, *, ids: bool = True) -> Message:
        """Sends messages, answers `text`; ids are made up, and extend where the planner says so."""
        prompt = self.planner.prompt(messages, (), {}, self.last)
        plan = self.planner.plan(prompt, self.last)
        if isinstance(plan, Extend) and plan.tail:
            end = self.tree.add_tail(plan.node, plan.tail, prompt.digests[plan.depth :], ids_array([9]))
        elif isinstance(plan, Extend):
            end = plan.node
        else:
            root = self.tree.find_root(prompt.root.tools_key, prompt.root.args_key)
            root = self.tree.add_root(prompt.root) if root is None else root
            made = [hash(bytes(key)) % 1000 for key in prompt.digests]
            end = self.tree.add_prompt(root, messages, prompt.digests, made if ids else None).end
        answer = Message("assistant", text)
        node = self.tree.add_sampled(end, answer, digest(answer), [7] if ids else None, [-1.0] if ids else None)
        root, digests = self.tree.root_of(node), [*prompt.digests, digest(answer)]
        self.last = LastTurn(
            root=root,
            messages=[*prompt.messages, answer],
            digests=digests,
            prefixes=self.planner.prefixes(root, digests, self.last),
            node=node,
            received=None,
            laid=None,
            sent=None,
            sent_tokens=0,
        )
        return answer


def test_the_first_turn_has_nothing_to_extend() -> None:
    """An empty trajectory falls back with `first_turn`."""
    assert Played().plan([user("a")]) == Fallback(reason=FallbackReason.FIRST_TURN)


def test_a_new_user_message_extends_the_last_turn() -> None:
    """The plan names the sampled node and only the new messages."""
    played = Played()
    first = [user("a")]
    answer = played.turn(first, "b")
    plan = played.plan([*first, answer, user("c")])
    assert isinstance(plan, Extend)
    assert plan.node == played.tree.leaves[-1]
    assert [message.text for message in plan.tail] == ["c"]


def test_old_messages_are_read_once() -> None:
    """Over 200 turns each message is canonicalized once, whatever the history's length."""
    played = Played()
    history: list[Message] = []
    for turn in range(200):
        history.append(user(f"u{turn}"))
        history.append(played.turn(history, f"a{turn}"))
    assert played.planner.canonicalized == 200


def test_equal_copies_match_too() -> None:
    """A caller that hands in fresh copies of the history gets the same extension."""
    played = Played()
    answer = played.turn([user("a")], "b")
    copies = [Message.of({"role": "user", "content": "a"}), Message.of(answer.as_openai()), user("c")]
    assert isinstance(played.plan(copies), Extend)


def test_the_longest_prefix_wins_over_all_branches() -> None:
    """Two sub-agents that share a prefix and alternate each extend their own branch."""
    played = Played()
    a = [user("shared")]
    a.append(played.turn(a, "b"))
    b = list(a)
    for turn in range(3):
        for name, history in (("a", a), ("b", b)):
            history.append(user(f"{name}{turn}"))
            plan = played.plan(history)
            assert isinstance(plan, Extend)
            assert plan.depth == len(history) - 1
            history.append(played.turn(history, f"{name} says {turn}"))


def test_the_very_same_prompt_is_sent_again_as_ids() -> None:
    """A retry of a turn extends the prompt that the server has seen, with no tail."""
    played = Played()
    history = [user("a")]
    played.turn(history, "b")
    plan = played.plan(history)
    assert isinstance(plan, Extend)
    assert plan.tail == []


def history_of(played: Played) -> list[Message]:
    history = [Message("system", "s"), user("a")]
    history.append(played.turn(history, "b"))
    history.append(user("c"))
    history.append(played.turn(history, "d"))
    return history


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h: [user("other"), user("x")], FallbackReason.NO_MATCH),
        (lambda h: [h[0], user("edited"), *h[2:], user("x")], FallbackReason.HISTORY_REWRITTEN),
        (lambda h: [h[0], user("summary"), user("x")], FallbackReason.HISTORY_REWRITTEN),
        (lambda h: [*h[:2], Message("assistant", "edited"), *h[3:], user("x")], FallbackReason.HISTORY_REWRITTEN),
        (lambda h: [*h[:4], Message("assistant", "edited"), user("x")], FallbackReason.HISTORY_REWRITTEN),
        (lambda h: [*h, Message("assistant", "made up"), user("x")], FallbackReason.TAIL_NOT_EXTENDABLE),
        (lambda h: [*h, Message("critic", "now")], FallbackReason.TAIL_NOT_EXTENDABLE),
        (lambda h: list(h), FallbackReason.TAIL_NOT_EXTENDABLE),
        (
            lambda h: [*h, Message.of({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]})],
            FallbackReason.MULTIMODAL,
        ),
    ],
)
def test_each_way_out_has_its_reason(change: Any, reason: FallbackReason) -> None:
    """A prompt that cannot be extended says why."""
    played = Played()
    plan = played.plan(change(history_of(played)))
    assert isinstance(plan, Fallback)
    assert plan.reason is reason


def test_changed_tools_and_arguments_have_their_own_reasons() -> None:
    """Tools or chat-template arguments that change are never extended over."""
    played = Played()
    history = [*history_of(played), user("x")]
    tools, args = played.plan(history, TOOLS), played.plan(history, enable_thinking=False)
    assert isinstance(tools, Fallback)
    assert tools.reason is FallbackReason.TOOLS_CHANGED
    assert isinstance(args, Fallback)
    assert args.reason is FallbackReason.TEMPLATE_ARGS_CHANGED


def test_a_turn_without_ids_cannot_be_extended() -> None:
    """Where the server reported no ids the reason is `ids_missing`, and the turn before is named."""
    played = Played()
    history = [user("a")]
    history.append(played.turn(history, "b", ids=False))
    plan = played.plan([*history, user("c")])
    assert isinstance(plan, Fallback)
    assert plan.reason is FallbackReason.IDS_MISSING
    assert plan.previous == played.tree.leaves[-1]


@pytest.mark.parametrize(
    ("roles", "fits"),
    [
        (["user"], True),
        (["user", "user"], True),
        (["tool"], True),
        (["tool", "tool", "user"], True),
        (["tool", "user", "user"], False),
        (["user", "tool"], False),
        (["assistant", "user"], False),
        (["system"], True),
        (["tool", "system", "user", "developer"], True),
        (["system", "tool"], False),
        (["critic"], False),
        ([], False),
    ],
)
def test_tails_that_can_be_bridged(roles: list[str], fits: bool) -> None:
    """A tail is tool messages and at most one user message, or user messages, with system messages among them."""
    assert (tail_fault([Message(role, "x") for role in roles]) == "") is fits
