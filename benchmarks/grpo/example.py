"""GRPO on the embedded model, on a CPU: a policy that learns `guess_number` from exactly the tokens it sampled.

    python -m benchmarks.grpo.example [--steps 60] [--mode mito] [--server vllm|sglang] [-o DIR]

Rollouts stream from the engine while the trainer computes, so the policy is one step off at most by default. Each
step: groups -> samples -> clipped policy gradient on the sampled tokens with the sampler's own logprobs -> weights
written as safetensors and pushed with `update_weights`.

With `--server vllm` a real vLLM serves the policy. It must run with VLLM_SERVER_DEV_MODE=1 on this machine, on the
folder that `--write-model DIR` writes: there the output layer has weights of its own. Reloading leaves the output
layer of tied embeddings as it was, on a CPU (vLLM 0.32, vllm/model_executor/model_loader/reload, limitation 2).
With `--server sglang` a real SGLang does, on the embedded model's own folder (`rollout model` prints it).

Needs the extra `train` (torch).
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.embedded_train.torch_model import Weights, hidden_states, load_weights, next_logprobs
from envs.guess_number import GuessNumber
from rollout import EngineConfig, EngineThread, Group, TrainingSample
from rollout.bench.never_sampled import never_sampled
from rollout.observe.stats import Stats
from rollout.servers.weights import InFlight
from rollout.tokens.batch import Padded, pad
from transports.embedded import MODEL_DIR

#: Where real servers are looked for, by their defaults.
URLS = {"vllm": "http://127.0.0.1:8000", "sglang": "http://127.0.0.1:30000"}

#: Rows of one forward pass.
MICRO_BATCH = 32


class Settings(msgspec.Struct, kw_only=True):
    """What can be set from the command line."""

    steps: int = 60
    tasks_per_step: int = 20
    rollouts_per_task: int = 8
    lr: float = 0.3
    """Of plain gradient descent with momentum: on so few rollouts most of a gradient's small entries are noise, which
    Adam would give as long a step as the rest (measured: it learned half as much, or fell apart)."""
    warmup: int = 3
    """Steps over which the rate grows; then it falls, to nothing at the last step."""
    max_gradient: float = 0.2
    """Norm that gradients are cut to: a typical one is 0.1."""
    clip: float = 0.2
    max_staleness: int = 2
    in_flight: InFlight = "abort"
    """What becomes of requests under way when weights are pushed. Aborted ones are resumed under the new weights;
    kept ones would go on over keys and values of the old, so that no single policy has their logprobs."""
    seed: int = 0
    mode: str = "tito"
    server: str = "embedded"
    base_url: str | None = None
    output: str = "runs/grpo"


class StepReport(msgspec.Struct, kw_only=True):
    """One step's line."""

    step: int
    reward: float
    """Mean over the step's rollouts, before its update."""
    kl: float
    """Sampler's minus trainer's logprob, mean over the trained tokens: how far the policy moved meanwhile."""
    disagreement: float
    """Largest difference between the sampler's logprob and the trainer's under the weights that sampled the token."""
    staleness: float
    """Mean over the trained tokens, in weight updates."""
    samples_per_rollout: float
    never_sampled: int
    """Tokens that a trainer would have trained on which nobody sampled, had it taken each rollout's last prompt and
    completion as its one sample."""
    rollouts: int
    trained_tokens: int
    token_in: int
    message_in: int
    prefix_breaks: int
    wait_s: float
    """Waiting for rollouts."""
    train_s: float
    push_s: float


class Trainer:
    """The policy in torch: one clipped policy-gradient step at a time."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.config: dict[str, Any] = json.loads((MODEL_DIR / "config.json").read_text("utf-8"))
        self.weights = {name: value.requires_grad_() for name, value in load_weights(MODEL_DIR).items()}
        self._optimizer = torch.optim.SGD(self.weights.values(), lr=settings.lr, momentum=0.9)
        self._past: deque[tuple[int, Weights]] = deque(maxlen=settings.max_staleness + 2)
        self.version = 0
        self._remember()

    def step(self, samples: Sequence[TrainingSample]) -> tuple[float, float]:
        """One update on the samples; returns (KL, mean staleness) over the trained tokens, before it."""
        rows = sorted(samples, key=lambda sample: len(sample.token_ids))
        total = sum(sum(sample.loss_mask) for sample in samples)
        drift = age = 0.0
        self._optimizer.zero_grad()
        for at in range(0, len(rows), MICRO_BATCH):
            batch = pad(rows[at : at + MICRO_BATCH])
            mask = torch.from_numpy(batch.loss_mask[:, 1:]).bool()
            sampled = torch.from_numpy(batch.logprobs[:, 1:]).float()
            ours = self._trained_logprobs(batch, mask)
            advantage = torch.from_numpy(batch.advantages).float()[:, None].expand(mask.shape)[mask]
            ratio = (ours - sampled[mask]).exp()
            clipped = ratio.clamp(1 - self.settings.clip, 1 + self.settings.clip)
            loss = -torch.minimum(ratio * advantage, clipped * advantage).sum() / total
            loss.backward()
            drift += float((sampled[mask] - ours.detach()).sum())
            age += float((self.version - batch.weight_versions[:, 1:])[mask.numpy()].sum())
        torch.nn.utils.clip_grad_norm_(self.weights.values(), self.settings.max_gradient)
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.lr * self._share_of_rate()
        self._optimizer.step()
        self.version += 1
        self._remember()
        return drift / total, age / total

    def _share_of_rate(self) -> float:
        done, warmup = self.version / self.settings.steps, (self.version + 1) / self.settings.warmup
        return min(1.0, warmup, 1.0 - done)

    def _trained_logprobs(self, batch: Padded, mask: torch.Tensor) -> torch.Tensor:
        """Logprobs of the trained tokens alone: most of a sample is prompt, and logits are the dearest part."""
        hidden = hidden_states(self.weights, self.config, _ids(batch)[:, :-1])[mask]
        logits = torch.nn.functional.linear(hidden, self.weights["model.embed_tokens.weight"])
        targets: torch.Tensor = _ids(batch)[:, 1:][mask]
        return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]

    def disagreement(self, samples: Sequence[TrainingSample]) -> float:
        """The largest difference from the sampler's logprobs, under the very weights that sampled each token."""
        worst = 0.0
        batch = pad(samples)
        with torch.no_grad():
            for version, weights in self._past:
                mine = (batch.loss_mask[:, 1:] == 1) & (batch.weight_versions[:, 1:] == version)
                if mine.any():
                    ours = next_logprobs(weights, self.config, _ids(batch)).numpy()
                    worst = max(worst, float(np.abs(ours - batch.logprobs[:, 1:])[mine].max()))
        return worst

    def write(self, folder: Path) -> None:
        """The policy as a folder that its server loads, in float32."""
        write_model(folder, self.weights, tied=self.settings.server != "vllm")

    def _remember(self) -> None:
        self._past.append((self.version, {name: value.detach().clone() for name, value in self.weights.items()}))


def write_model(folder: Path, weights: Weights, *, tied: bool) -> None:
    """A model folder; not `tied`, its output layer has the embeddings as weights of its own."""
    config = json.loads((MODEL_DIR / "config.json").read_text("utf-8"))
    if not folder.exists():
        shutil.copytree(MODEL_DIR, folder)
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": tied}, indent=2) + "\n", "utf-8")
    arrays = {name: value.detach().contiguous() for name, value in weights.items()}
    if not tied:
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].clone()
    save_file(arrays, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _ids(batch: Padded) -> torch.Tensor:
    return torch.from_numpy(batch.token_ids).long()


def endless_tasks(seed: int) -> Iterator[Any]:
    """Hidden numbers without end."""
    for round_ in itertools.count():
        yield from GuessNumber().tasks(64, seed=seed * 100_003 + round_)


def train(settings: Settings) -> list[StepReport]:
    """The whole loop; prints a line per step."""
    torch.manual_seed(settings.seed)
    trainer, folder = Trainer(settings), Path(settings.output).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = EngineConfig(
        max_tokens=64,
        concurrency=64,
        mode=settings.mode,  # type: ignore[arg-type]  # argparse has checked it
        base_url=settings.base_url,
        tokenizer=str(MODEL_DIR) if settings.base_url else None,
        sampling={"temperature": 1.0},
        max_staleness=settings.max_staleness,
    )
    reports = []
    with EngineThread(config, GuessNumber) as engine:
        if settings.base_url is not None:
            # Another run may have left its weights on the server.
            trainer.write(folder / "policy")
            engine.update_weights(0, folder / "policy")
        # What runs and what waits are one step together.
        running = config.most_at_once // settings.rollouts_per_task
        stream = engine.stream(
            endless_tasks(settings.seed),
            rollouts_per_task=settings.rollouts_per_task,
            ahead=settings.tasks_per_step - running,
        )
        before = engine.stats()
        for step in range(1, settings.steps + 1):
            report = _step(step, trainer, engine, stream, before, folder)
            before = engine.stats()
            reports.append(report)
            print(_line(report), flush=True)
            (folder / "steps.jsonl").write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in reports))
        stream.close()
    return reports


def _step(
    step: int,
    trainer: Trainer,
    engine: EngineThread,
    stream: Iterator[Group],
    before: Stats,
    folder: Path,
) -> StepReport:
    started = time.perf_counter()
    groups = list(itertools.islice(stream, trainer.settings.tasks_per_step))
    arrived = time.perf_counter()
    rollouts = [rollout for group in groups for rollout in group.finished]
    samples = [sample for group in groups for sample in group.samples()]
    disagreement = trainer.disagreement(samples[:MICRO_BATCH])
    kl, staleness = trainer.step(samples)
    trained = time.perf_counter()
    trainer.write(folder / "policy")
    engine.update_weights(trainer.version, folder / "policy", in_flight=trainer.settings.in_flight)
    stats = engine.stats()
    return StepReport(
        step=step,
        reward=sum(rollout.reward for rollout in rollouts) / len(rollouts),
        kl=kl,
        disagreement=disagreement,
        staleness=staleness,
        samples_per_rollout=len(samples) / len(rollouts),
        never_sampled=sum(never_sampled(rollout) for rollout in rollouts),
        rollouts=len(rollouts),
        trained_tokens=sum(sum(sample.loss_mask) for sample in samples),
        token_in=stats.token_in_turns - before.token_in_turns,
        message_in=stats.message_in_turns - before.message_in_turns,
        prefix_breaks=sum(bool(turn.prefix_break) for rollout in rollouts for turn in rollout.turns),
        wait_s=arrived - started,
        train_s=trained - arrived,
        push_s=time.perf_counter() - trained,
    )


def _line(r: StepReport) -> str:
    return (
        f"step {r.step:3}  reward {r.reward:.3f}  kl {r.kl:+.4f}  disagreement {r.disagreement:.1e}  "
        f"staleness {r.staleness:.2f}  samples/rollout {r.samples_per_rollout:.2f}  never sampled {r.never_sampled}  "
        f"turns {r.token_in} token-in, {r.message_in} message-in, {r.prefix_breaks} broke  "
        f"wait {r.wait_s:.1f} s, train {r.train_s:.1f} s, push {r.push_s:.2f} s"
    )


def picture(runs: Sequence[Path], path: Path) -> None:
    """Finished runs, a line for each folder: the reward, smoothed over five steps, and what message-in costs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (curve, samples, alien, apart) = plt.subplots(1, 4, figsize=(14, 3.6), dpi=100, width_ratios=(2, 1, 1, 1))
    for run in runs:
        lines = (run / "steps.jsonl").read_bytes().splitlines()
        steps = [msgspec.json.decode(line, type=StepReport) for line in lines]
        at = [s.step for s in steps]
        rewards = [float(np.mean([s.reward for s in steps[max(0, i - 4) : i + 1]])) for i in range(len(steps))]
        curve.plot(at, rewards, label=run.name)
        samples.plot(at, [s.samples_per_rollout for s in steps])
        alien.plot(at, [100 * s.never_sampled / s.trained_tokens for s in steps])
        apart.plot(at, [s.disagreement for s in steps])
    curve.set(xlabel="step", ylabel="mean reward (5 steps)", title="GRPO on guess_number, embedded model, CPU")
    curve.legend()
    samples.set(xlabel="step", title="training samples per rollout", ylim=(0, None))
    alien.set(xlabel="step", title="tokens never sampled, %", ylim=(0, max(1, alien.get_ylim()[1])))
    apart.set(xlabel="step", title="logprobs apart, at most", yscale="log")
    for axes in (curve, samples, alien, apart):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Settings()
    for name in ("steps", "tasks_per_step", "rollouts_per_task", "max_staleness", "seed", "warmup"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    for name in ("lr", "clip", "max_gradient"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(defaults, name))
    parser.add_argument("--mode", choices=["tito", "mito"], default="tito")
    parser.add_argument("--in-flight", choices=["keep", "wait", "abort"], default=defaults.in_flight)
    parser.add_argument("--server", choices=["embedded", *URLS], help="embedded, or vllm where --base-url is given")
    addresses = ", ".join(f"{server}: {url}" for server, url in URLS.items())
    parser.add_argument("--base-url", help=f"the server's address [{addresses}]")
    parser.add_argument("-o", "--output", default=defaults.output, help="where weights, steps and the picture go")
    parser.add_argument("--write-model", metavar="DIR", type=Path, help="write the folder for a vLLM, and end")
    parser.add_argument("--picture-of", metavar="DIR", nargs="+", type=Path, help="draw finished runs into -o, and end")
    given = vars(parser.parse_args(argv))
    given["server"] = given["server"] or ("vllm" if given["base_url"] else "embedded")
    given["base_url"] = given["base_url"] or URLS.get(given["server"])
    if (runs := given.pop("picture_of")) is not None:
        picture(runs, Path(given["output"]))
        print(given["output"])
        return 0
    if (served := given.pop("write_model")) is not None:
        write_model(served, load_weights(MODEL_DIR), tied=False)
        print(served)
        return 0
    settings = Settings(**given)
    train(settings)
    folder = Path(settings.output)
    picture([folder], folder / "reward.png")
    print(f"{folder / 'reward.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
