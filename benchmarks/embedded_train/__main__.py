"""`python -m benchmarks.embedded_train -o DIR`: the embedded model from nothing, in minutes on a CPU."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.embedded_train.corpus import tokenizer_texts
from benchmarks.embedded_train.evaluate import all_reports
from benchmarks.embedded_train.fit import batches, fit, to_numpy
from benchmarks.embedded_train.folder import model_config, random_weights, write_config, write_weights
from benchmarks.embedded_train.tokenizer import train_tokenizer, write_tokenizer


def main(argv: list[str] | None = None) -> int:
    """Trains, writes the folder, and plays the environments with it."""
    arguments = _parser().parse_args(argv)
    started = time.monotonic()
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)

    tokenizer = train_tokenizer(tokenizer_texts(arguments.seed), arguments.vocab)
    config = model_config(tokenizer, hidden=128, layers=4, heads=4, kv_heads=2, ffn=384)
    write_tokenizer(tokenizer, folder, context=config["max_position_embeddings"])
    write_config(config, tokenizer, folder)
    weights = {name: torch.from_numpy(value) for name, value in random_weights(config, arguments.seed).items()}
    _log(f"{sum(weight.numel() for weight in weights.values()):,} parameters, {arguments.vocab} tokens")

    stream = batches(tokenizer, arguments.seed, arguments.batch, longest=1536)
    fit(weights, config, stream, steps=arguments.steps, peak_lr=arguments.lr, log=_log)
    write_weights(to_numpy(weights), folder)
    _log(f"written to {folder} after {time.monotonic() - started:.0f} s")
    for report in all_reports(folder, games=arguments.games, seed=arguments.seed + 1):
        _log(str(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedded_train", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=8192, help="tokens a step")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--vocab", type=int, default=2048, help="the Dynamo mocker samples ids from 1000 to 1999")
    parser.add_argument("--games", type=int, default=256, help="games of each environment to evaluate with")
    return parser


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
