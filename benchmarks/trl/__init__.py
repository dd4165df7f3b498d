"""TRL's own GRPOTrainer on the embedded model: `python -m benchmarks.trl.example`."""
