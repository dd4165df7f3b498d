"""A small real GRPOTrainer on the embedded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transports.embedded import MODEL_DIR

#: What other packages warn of is theirs to mend.
MARKS = [
    pytest.mark.live,
    pytest.mark.trainers,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def model() -> Any:
    """The embedded model, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)


def grpo(
    tmp_path: Path, rollout_func: Callable[..., Any], prompts: list[dict[str, Any]], reward: Any, **settings: Any
) -> Any:
    """A GRPOTrainer of eight rows a step, four of each prompt."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    given = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "num_generations": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "temperature": 1.0,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        **settings,
    }
    data = Dataset.from_list(prompts)
    return GRPOTrainer(
        model=model(),
        processing_class=AutoTokenizer.from_pretrained(MODEL_DIR),
        reward_funcs=reward,
        rollout_func=rollout_func,
        train_dataset=data,
        eval_dataset=data,
        args=GRPOConfig(output_dir=str(tmp_path), **given),
    )
