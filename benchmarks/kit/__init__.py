"""What `benchmarks.fidelity` plays: model families, chat templates, conversation shapes, completions."""
