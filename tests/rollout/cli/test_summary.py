"""Sums over rollouts."""

from __future__ import annotations

import threading

from rollout.cli.summary import MOST_AGENTS, Summary, table_rows, why_untrainable
from rollout.observe.stats import Stats
from rollout.records import Failure, FailureKind, Rollout, Route, StopReason, Turn
from rollout.tokens.prefix import FallbackReason


def rollout_of(member: int, turns: int) -> Rollout:
    """A finished rollout with `turns` turns of three tokens."""
    first = Turn(route=Route.MESSAGE_IN, fallback=FallbackReason.FIRST_TURN, completion_tokens=3)
    later = [Turn(route=Route.TOKEN_IN, completion_tokens=3, prefix_break=False) for _ in range(turns - 1)]
    return Rollout(
        id=f"0-a-{member}",
        task_id="0-a",
        task_index=0,
        member=member,
        reward=1.0,
        stop=StopReason.DONE,
        turns=[first, *later],
    )


def test_turns_are_counted_by_route_and_reason() -> None:
    """Every turn is token-in or message-in, and every message-in turn has its reason."""
    summary = Summary(env="echo")
    summary.add(rollout_of(0, 4))
    assert (summary.turns, summary.token_in_turns, summary.message_in_turns) == (4, 3, 1)
    assert summary.fallbacks == {"first_turn": 1}
    assert summary.reward_mean == 1.0


def test_a_resumed_run_claims_only_its_own_speed() -> None:
    """What an earlier run played counts in the sums and not in the speed."""
    summary = Summary(env="echo")
    summary.add_resumed(rollout_of(0, 4))
    summary.add(rollout_of(1, 2))
    assert summary.turns == 6
    assert summary.speeds(2.0) == (3.0, 1.0)
    assert summary.as_json(wall_s=2.0, client_cpu_s=0.0, run_dir="r", stats=Stats())["turns_per_s"] == 1.0


def of_task(task: int, member: int, reward: float) -> Rollout:
    """A finished rollout of one turn, which was cut off."""
    turn = Turn(route=Route.TOKEN_IN, completion_tokens=3, finish_reason="length")
    return Rollout(
        id=f"{task}-{member}",
        task_id=str(task),
        task_index=task,
        member=member,
        reward=reward,
        metrics={"steps": float(member)},
        stop=StopReason.DONE,
        turns=[turn],
    )


def test_a_summary_says_what_a_trainer_asks() -> None:
    """Turns cut off, metrics, the rewards' deviation, groups with equal rewards, pass@k, and why rollouts ended."""
    summary = Summary(env="echo")
    for task, rewards in enumerate([(1.0, 0.0), (0.0, 0.0)]):
        for member, reward in enumerate(rewards):
            summary.add(of_task(task, member, reward))
    found = summary.as_json(wall_s=1.0, client_cpu_s=0.0, run_dir="r", stats=Stats())
    assert (found["cut_off_turns"], found["cut_off_share"]) == (4, 1.0)
    assert found["metrics"] == {"steps": 0.5}
    assert (found["reward_mean"], found["stops"]) == (0.25, {"done": 4})
    assert round(found["reward_std"], 3) == 0.433
    assert (found["groups"], found["equal_groups"]) == (2, 1)
    assert found["pass_at_k"] == {"1": 0.25, "2": 0.5}
    rows = dict(table_rows(summary, 1.0, "r", Stats()))
    assert "cut off at max_tokens 4 (100%)" in rows["turns"]
    assert rows["metrics"] == "steps 0.5"
    assert rows["pass"].startswith("@1 0.250, @2 0.500")
    assert rows["equal rewards"] == "1 of 2 groups (50%)"


def test_members_that_failed_are_no_attempts() -> None:
    """A group of two with one that failed says nothing of groups."""
    summary = Summary(env="echo")
    summary.add(of_task(0, 0, 1.0))
    failed = of_task(0, 1, 0.0)
    failed.stop, failed.failure = None, Failure(kind=FailureKind.TIMEOUT, message="late")
    summary.add(failed)
    assert summary.groups.groups == 0
    assert summary.outcomes.rewards.count == 1


def test_a_run_without_a_sample_has_a_reason() -> None:
    """All failed, or ids are missing; a run that has not begun has none."""
    summary = Summary(env="echo")
    assert why_untrainable(summary) is None
    summary.add(of_task(0, 0, 1.0))
    assert "no token ids" in (why_untrainable(summary) or "")
    summary = Summary(env="echo")
    failed = Failure(kind=FailureKind.TIMEOUT, message="late")
    summary.add(Rollout(id="a", task_id="a", task_index=0, member=0, failure=failed))
    assert why_untrainable(summary) == "all 1 rollouts failed, 1 of them as timeout: late"


def test_threads_may_count_at_once() -> None:
    """No rollout is lost."""
    summary = Summary(env="echo")
    rollout = rollout_of(0, 20)

    def add() -> None:
        for _ in range(200):
            summary.add(rollout)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (summary.rollouts, summary.turns, summary.outcomes.rewards.count) == (800, 16_000, 800)


def test_who_asked_is_counted_and_what_was_left_out_is_told() -> None:
    """Each name with its turns and its rewards; a thousand names are a few and the others."""
    asked = rollout_of(0, 3)
    asked.turns[1].agent = asked.turns[2].agent = "judge"
    asked.turns[2].train = False
    asked.rewards = {"judge": 0.5}
    summary = Summary(env="mine")
    summary.add(asked)
    found = summary.as_json(wall_s=1.0, client_cpu_s=0.0, run_dir="r", stats=Stats())
    assert (found["left_out_tokens"], found["agents"]) == (3, {"judge": {"turns": 2, "reward_mean": 0.5}})
    rows = dict(table_rows(summary, 1.0, "r", Stats()))
    assert rows["agent judge"] == "2 turns   reward 0.500 ± 0.000"
    assert rows["sampled tokens"].endswith("3 left out by who asked")
    for member in range(1_000):
        many = rollout_of(member, 2)
        many.turns[1].agent = f"sub-{member}"
        summary.add(many)
    assert len(summary.agents) == MOST_AGENTS + 1
    assert sum(tally.turns for tally in summary.agents.values()) == 1_002


def test_rollouts_that_nobody_judged_are_said_and_not_counted() -> None:
    """Neither in the mean nor in what solved its task; where there are no others that is all that is said."""
    summary = Summary(env="proxy")
    unknown = rollout_of(0, 2)
    unknown.reward, unknown.reward_known = 0.0, False
    summary.add(unknown)
    assert summary.reward_mean is None
    rows = dict(table_rows(summary, 1.0, "run", Stats()))
    assert rows["reward"] == "1 without a reward, which are not counted"
    summary.add(rollout_of(1, 2))
    assert summary.outcomes.rewards.mean == 1.0
    assert summary.groups.groups == 0
    rows = dict(table_rows(summary, 1.0, "run", Stats()))
    assert rows["reward"] == "1.000 ± 0.000   min 1, max 1   1 without a reward, which are not counted"
    assert summary.as_json(wall_s=1.0, client_cpu_s=1.0, run_dir="run", stats=Stats())["unknown_rewards"] == 1
