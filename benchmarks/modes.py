"""Token-in against message-in on the embedded model: `python -m benchmarks.modes` or `make bench`.

The same echo conversations in both modes, in turn (A B A B), in processes of their own. Compare the ratios of
a pair, not the absolute times: machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MODES = ("tito", "mito")


def play(mode: str, turns: int, rollouts: int, folder: Path) -> dict[str, Any]:
    """One run of the command line; its --json object."""
    script = Path(sys.executable).with_name("rollout")
    size = ["-n", str(rollouts), "-a", f"turns={turns}", "-a", "chars=200", "--max-tokens", "24"]
    command = [str(script), "run", "echo", *size, "--mode", mode, "--json"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    ratios = []
    print("repeat  mode  turns/s  cached  breaks  samples")
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            speeds = []
            for mode in MODES:
                found = play(mode, options.turns, options.rollouts, Path(folder))
                speeds.append(found["turns_per_s"])
                cached = found["cached_tokens"] / found["prompt_tokens"]
                shown = f"{found['prefix_breaks']:6d}  {found['samples']:7d}"
                print(f"{repeat + 1:6d}  {mode}  {found['turns_per_s']:7.1f}  {cached:6.0%}  {shown}", flush=True)
            ratios.append(speeds[0] / speeds[1])
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"turns/s, token-in over message-in: median {statistics.median(ratios):.2f} of {each}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
