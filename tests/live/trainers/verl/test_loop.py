"""verl's own agent-loop worker plays our environments, and its batches hold what we sampled.

The worker, its client and the load balancer are verl's; the balancer and the server are Ray actors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import ray
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput, DictConfigWrap, ToolListWrap
from verl.trainer.ppo.v1 import agent_loop_tq

from envs.guess_number import GuessNumber
from rollout.agent import Agent, Model, Outcome
from rollout.chat.messages import Message, user
from rollout.env import Env, Step
from rollout.errors import ConfigError, RolloutError
from rollout.records import Rollout
from rollout.trainers.verl import LengthLimits, answered
from rollout.trainers.verl_loop import ENGINES, RolloutAgentLoop
from tests.live.trainers.verl.kit import (
    MARKS,
    STEP,
    Queue,
    balancer,
    batch,
    config,
    registered,
    remote_server,
    worker,
    worker_v1,
)

pytestmark = MARKS

GUESS = {"env": "guess_number", "settings": {"max_tokens": 24, "require_token_in": True, "verify": True}}
HERE = Path(__file__)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> dict[str, Rollout]:
    """The rollouts that were played, by id."""
    found: dict[str, Rollout] = {}
    monkeypatch.setattr(RolloutAgentLoop, "played", lambda self, rollout: found.update({rollout.id: rollout}))
    return found


@pytest.fixture(scope="module")
def server(ray_here: None) -> Iterator[Any]:
    """A server, as verl's servers are Ray actors."""
    made = remote_server()
    yield made
    ray.kill(made)


@pytest.fixture(scope="module")
def balancing(server: Any) -> Iterator[Any]:
    """verl's load balancer over it."""
    made = balancer({"one": server})
    yield made
    ray.kill(made)


@pytest.fixture
async def served(server: Any, balancing: Any) -> AsyncIterator[Any]:
    """The same, with the server well; what was opened on it is closed."""
    await server.fail_with.remote(None)
    yield balancing
    await ENGINES.aclose()


async def test_verl_plays_64_rollouts_and_has_what_was_sampled(
    served: Any, played: dict[str, Rollout], tmp_path: Path
) -> None:
    """Ids, masks, logprobs, rewards and steps of verl's batch are those of our samples, padded as verl pads."""
    full = config(GUESS, tmp_path)
    out = await worker(full, served).generate_sequences(batch(list(GuessNumber().tasks(64, seed=0))))
    assert len(out) == len(played) == 64
    wide = full.actor_rollout_ref.rollout.prompt_length
    for at in range(64):
        rollout = played[out.non_tensor_batch["rollout_id"][at]]
        (sample,) = rollout.samples()
        first, held = sample.loss_mask.index(1), out.batch["attention_mask"][at].bool()
        response = held[wide:]
        assert out.batch["input_ids"][at][held].tolist() == sample.token_ids.tolist()
        assert held[:wide].sum() == first
        assert out.batch["response_mask"][at][response].tolist() == sample.loss_mask[first:].tolist()
        logprobs = out.batch["rollout_log_probs"][at][response].tolist()
        assert logprobs == pytest.approx(sample.logprobs[first:].tolist())
        assert out.batch["rm_scores"][at].sum().item() == pytest.approx(rollout.reward)
        assert out.non_tensor_batch["min_global_steps"][at] == out.non_tensor_batch["max_global_steps"][at] == STEP
        assert out.non_tensor_batch["__num_turns__"][at] == len(rollout.messages)
        assert {turn.route for turn in rollout.turns} == {"token_in"}
    assert len({rollout.reward for rollout in played.values()}) > 1
    assert sum(len(rollout.turns) for rollout in played.values()) > 128


async def test_validation_is_played_on_its_own_sampling(server: Any, served: Any, tmp_path: Path) -> None:
    """verl hands each batch its sampling: the server is asked with it, and the same worker plays both."""
    full = config(GUESS, tmp_path, temperature=0.9, top_p=0.95)
    loops, rows = worker(full, served), batch(list(GuessNumber().tasks(4, seed=1)))
    before = len(await server.told.remote())
    await loops.generate_sequences(rows)
    rows.meta_info["validate"] = True
    await loops.generate_sequences(rows)
    asked = (await server.told.remote())[before:]
    assert {(one["temperature"], one["top_p"]) for one in asked} == {(0.9, 0.95), (0, 1.0)}
    assert repr(ENGINES) == "<SharedEngines 2 open>"


class Breaks(Env):
    """Fails where its task says so."""

    async def reset(self, task: Any) -> Sequence[Message]:
        if task["breaks"]:
            raise ValueError("no sandbox")
        return [user("Hello.")]

    async def step(self, message: Message) -> Step:
        return Step(done=True, reward=1.0, metrics={"seen": 1.0})


async def test_an_environment_that_fails_trains_on_nothing(served: Any, tmp_path: Path) -> None:
    """Its row is masked, with reward 0 and the reason, beside others that are as they were."""
    full = config({"env": f"{HERE}:Breaks", "settings": {"max_tokens": 8}}, tmp_path)
    out = await worker(full, served).generate_sequences(batch([{"breaks": at == 1} for at in range(3)]))
    assert out.batch["response_mask"].sum(1).bool().tolist() == [True, False, True]
    assert out.batch["rm_scores"].sum(1).tolist() == [1.0, 0.0, 1.0]
    failures = out.non_tensor_batch["rollout_failure"].tolist()
    assert failures[0] is failures[2] is None
    assert "no sandbox" in failures[1]
    assert out.non_tensor_batch["rollout_metrics"][0] == {"seen": 1.0}


async def test_servers_that_fail_end_the_step(server: Any, served: Any, tmp_path: Path) -> None:
    """As verl's own loops do; and with `on_failure: raise` an environment's failure does, too."""
    loops = worker(config(GUESS, tmp_path), served)
    await server.fail_with.remote("out of memory")
    with pytest.raises(RolloutError, match="out of memory"):
        await loops.generate_sequences(batch(list(GuessNumber().tasks(2, seed=0))))
    await server.fail_with.remote(None)
    strict = worker(config({"env": f"{HERE}:Breaks", "on_failure": "raise"}, tmp_path), served)
    with pytest.raises(RolloutError, match="no sandbox"):
        await strict.generate_sequences(batch([{"breaks": True}]))


class Forks(Agent):
    """Two branches of one conversation."""

    async def run(self, task: Any, model: Model) -> Outcome:
        await model.chat([user("Hello.")])
        await model.chat([user("Hello."), user("Who are you?")])
        return Outcome(reward=0.5)


async def test_branches(served: Any, played: dict[str, Rollout], tmp_path: Path) -> None:
    """A worker that takes one answer has the last branch; `all` hands verl's v1 trainer each, and none of a failure."""
    forks = {"env": f"{HERE}:Forks", "settings": {"max_tokens": 8}}
    out = await worker(config(forks, tmp_path), served).generate_sequences(batch([{}]))
    (rollout,) = played.values()
    assert out.batch["response_mask"].sum().item() == rollout.turns[1].completion_tokens
    every = loop_of({**forks, "branches": "all"}, served, tmp_path)
    outputs = await every.run({"temperature": 1.0, "logprobs": True}, extra_info={"task": {}})
    assert [type(one) for one in outputs] == [AgentLoopOutput] * 2
    last = list(played.values())[-1]
    rows = answered(last, LengthLimits(prompt=128, response=512), "all")
    assert [(one.response_ids, one.response_mask) for one in outputs] == [(row.response_ids, row.mask) for row in rows]
    assert all("reward_extra_info" in one.extra_fields for one in outputs)
    broken = loop_of({"env": f"{HERE}:Breaks", "branches": "all"}, served, tmp_path)
    assert await broken.run({"temperature": 1.0}, extra_info={"task": {"breaks": True}}) == []


async def test_verls_v1_worker_takes_every_branch(served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each branch is a row of its rollout, with its tokens, reward and steps; a failed rollout has none, and is no
    failure of its prompt."""
    queue = Queue()
    monkeypatch.setattr(agent_loop_tq, "tq", queue)
    full = config({"env": f"{HERE}:Forks", "branches": "all", "settings": {"max_tokens": 8}}, tmp_path)
    row = {"agent_name": "ours", "global_steps": 1, "raw_prompt": [{"role": "user", "content": "Play."}]}
    about = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": False}
    asked = {"temperature": 1.0, "logprobs": True}
    made = worker_v1(full, served)
    await made._run_prompt({**row, "uid": "a", "extra_info": {"task": {}}, "__rollout_n__": 2}, asked, about)
    assert sorted(queue.rows) == ["a_0_0", "a_0_1", "a_1_0", "a_1_1"]
    for fields, tag in queue.rows.values():
        assert fields["response_mask"].sum() > 0
        assert fields["rollout_log_probs"].shape == fields["responses"].shape
        assert fields["rm_scores"].sum() == 0.5
        assert tag["min_global_steps"] == tag["max_global_steps"] == STEP
    full = config({"env": f"{HERE}:Breaks", "branches": "all"}, tmp_path)
    await worker_v1(full, served)._run_prompt(
        {**row, "uid": "b", "extra_info": {"task": {"breaks": True}}}, asked, about
    )
    assert queue.status == {"a": "finished", "b": "finished"}
    assert len(queue.rows) == 4


async def test_it_is_registered_and_rows_may_name_the_environment(served: Any, tmp_path: Path) -> None:
    """verl's registry knows it by `rollout`; rows that say nothing of use are refused in one line."""
    assert registered()["rollout"]["_target_"] == "rollout.trainers.verl_loop.RolloutAgentLoop"
    assert issubclass(RolloutAgentLoop, AgentLoopBase)
    rows = batch([{}] * 2, agent="rollout")
    tasks = [{"target": 3}, {"target": 4}]
    rows.non_tensor_batch["extra_info"] = np.array(
        [{"env": "guess_number", "env_args": {"guesses": 2}, "task": task} for task in tasks], dtype=object
    )
    out = await worker(config(GUESS, tmp_path), served).generate_sequences(rows)
    assert out.non_tensor_batch["rollout_failure"].tolist() == [None, None]
    assert max(out.non_tensor_batch["__num_turns__"]) <= 5
    bare = loop_of({}, served, tmp_path)
    with pytest.raises(ConfigError, match="has no `task`"):
        await bare.run({}, extra_info={})
    with pytest.raises(ConfigError, match="no environment: name one by `env`"):
        await bare.run({}, extra_info={"task": {}})
    with pytest.raises(ConfigError, match="max_tokns"):
        await loop_of({**GUESS, "settings": {"max_tokns": 3}}, served, tmp_path).run({}, extra_info={"task": {}})


async def test_a_chat_template_that_verl_was_given_is_the_rollouts(
    served: Any, played: dict[str, Rollout], tmp_path: Path
) -> None:
    """`model.custom_chat_template` makes the prompts, on every turn."""
    full = config(GUESS, tmp_path)
    full.actor_rollout_ref.model.custom_chat_template = CHATML
    await worker(full, served).generate_sequences(batch(list(GuessNumber().tasks(1, seed=0))))
    (rollout,) = played.values()
    assert rollout.ok, rollout.failure
    loops = worker(full, served)
    (sample,) = rollout.samples()
    text = loops.tokenizer.decode(sample.token_ids[: sample.loss_mask.index(1)].tolist())
    assert text.startswith("<|im_start|>system\nOurs.")


#: One that says something at its beginning.
CHATML = (
    "<|im_start|>system\nOurs.<|im_end|>\n{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def loop_of(given: dict[str, Any], served: Any, folder: Path) -> RolloutAgentLoop:
    """The loop as verl's worker makes one for each row."""
    full = config(given, folder)
    made = worker(full, served)
    made_loop: RolloutAgentLoop = hydra.utils.instantiate(
        registered()["ours"],
        trainer_config=DictConfigWrap(full),
        server_manager=made.llm_client,
        tokenizer=made.tokenizer,
        processor=made.processor,
        hf_model_type=made.hf_model_type,
        dataset_cls=made.dataset_cls,
        data_config=DictConfigWrap(full.data),
        tools=ToolListWrap([]),
    )
    return made_loop
