"""The GRPO example: `python -m benchmarks.grpo.example`."""
