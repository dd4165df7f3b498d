"""verl's own client, load balancer and agent-loop worker, over a server that samples from the embedded model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import verl.trainer.config
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker, _agent_loop_registry
from verl.protocol import DataProto
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.router import get_router_handle

from rollout.request import Request, TokenPrompt
from rollout.transport import Transport, TransportConfig
from transports.embedded import MODEL_DIR
from transports.embedded.transport import open as open_embedded

#: What importing verl and Ray warns of is theirs to mend.
MARKS = [
    pytest.mark.live,
    pytest.mark.trainers,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

#: The training step that the server says its weights are of.
STEP = 7


class Server:
    """What a server of verl's is to its client, sampling from the embedded model."""

    def __init__(self) -> None:
        self._opening = asyncio.Lock()
        self._embedded: Transport | None = None
        self.fault: str | None = None
        self.asked: list[dict[str, Any]] = []

    async def generate(
        self,
        request_id: str,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        image_data: Any = None,
        video_data: Any = None,
    ) -> TokenOutput:
        """As `vLLMHttpServer.generate` answers: "completed", whether it ended by itself or at its maximum."""
        if self.fault is not None:
            raise ValueError(self.fault)
        assert type(prompt_ids) is list
        self.asked.append(sampling_params)
        async with self._opening:
            self._embedded = self._embedded or await open_embedded(TransportConfig())
        params = dict(sampling_params)
        most, stops, wanted = params.pop("max_tokens"), params.pop("stop_token_ids"), params.pop("logprobs")
        reply = await self._embedded.generate(
            Request(
                prompt=TokenPrompt(prompt_ids),
                request_id=request_id,
                session_id=request_id,
                max_tokens=most,
                sampling=params,
                stop_token_ids=stops,
            )
        )
        assert reply.completion_ids is not None
        return TokenOutput(
            token_ids=reply.completion_ids,
            log_probs=reply.logprobs if wanted else None,
            stop_reason="completed",
            extra_fields={"global_steps": STEP, "num_cached_tokens": reply.cached_tokens},
        )

    async def fail_with(self, fault: str | None) -> None:
        """Has every request fail from now on."""
        self.fault = fault

    async def told(self) -> list[dict[str, Any]]:
        """The sampling parameters that it was asked with."""
        return self.asked


def config(loop: dict[str, Any], folder: Path, **rollout: Any) -> DictConfig:
    """verl's own configuration of a PPO run, with one agent loop more."""
    full = OmegaConf.load(Path(verl.trainer.config.__path__[0]) / "_generated_ppo_trainer.yaml")
    loops = folder / "loops.yaml"
    loops.write_text(
        OmegaConf.to_yaml([{"name": "ours", "_target_": "rollout.trainers.verl_loop.RolloutAgentLoop", **loop}])
    )
    for path, value in {
        "model.path": str(MODEL_DIR),
        "rollout.name": "vllm",
        "rollout.calculate_log_probs": True,
        "rollout.prompt_length": 128,
        "rollout.response_length": 512,
        "rollout.agent.agent_loop_config_path": str(loops),
        **{f"rollout.{name}": value for name, value in rollout.items()},
    }.items():
        OmegaConf.update(full, f"actor_rollout_ref.{path}", value, force_add=True)
    return full


def balancer(servers: dict[str, Any]) -> Any:
    """verl's load balancer over servers, a Ray actor."""
    return get_router_handle(servers)


def worker(full: DictConfig, balancer: Any) -> AgentLoopWorker:
    """verl's worker, in this process, which asks the servers through verl's load balancer."""
    return AgentLoopWorker(full, LLMServerClient(full, load_balancer_handle=balancer))


class Queue:
    """What verl's v1 worker writes to its TransferQueue."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[TensorDict, dict[str, Any]]] = {}
        self.status: dict[str, str] = {}

    def init(self) -> None: ...

    async def async_kv_put(self, key: str, partition_id: str, tag: dict[str, Any]) -> None:
        assert partition_id == "train"
        self.status[key] = tag["status"]

    async def async_kv_batch_put(
        self, keys: list[str], fields: TensorDict, tags: list[dict[str, Any]], partition_id: str
    ) -> None:
        assert partition_id == "train"
        self.rows |= {key: (fields[at], tag) for at, (key, tag) in enumerate(zip(keys, tags, strict=True))}


def worker_v1(full: DictConfig, balancer: Any) -> Any:
    """The worker of verl's v1 trainer, in this process."""
    from verl.trainer.ppo.v1 import agent_loop_tq  # here: it imports every engine, and the server needs none

    kind = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    return kind(full, LLMServerClient(full, load_balancer_handle=balancer))


def batch(tasks: list[Any], *, agent: str = "ours", **columns: list[Any]) -> DataProto:
    """Rows of a data set, as verl hands them to its workers."""
    count = len(tasks)
    rows = {
        "raw_prompt": [[{"role": "user", "content": "Play."}]] * count,
        "extra_info": [{"task": task} for task in tasks],
        "agent_name": [agent] * count,
        "index": list(range(count)),
        **columns,
    }
    arrays = {}
    for name, values in rows.items():
        arrays[name] = np.empty(count, dtype=object)
        arrays[name][:] = values
    return DataProto(batch=TensorDict({"dummy": torch.zeros(count, 1)}, batch_size=count), non_tensor_batch=arrays)


def registered() -> dict[str, Any]:
    """verl's registry of agent loops."""
    found: dict[str, Any] = _agent_loop_registry
    return found


def remote_server() -> Any:
    """A server as a Ray actor."""
    return ray.remote(Server).options(num_cpus=0, max_concurrency=64).remote()
