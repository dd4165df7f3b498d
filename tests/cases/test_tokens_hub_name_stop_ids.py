"""Case tokens/hub_name_stop_ids: the stop tokens of a tokenizer named as on the hub are those of its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kit.tokenizers import small_tokenizer

TEMPLATE = (
    "<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CODE = "import sys; from rollout.codec.local import load_codec; print(load_codec(sys.argv[1]).stop_token_ids)"


@pytest.mark.slow
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_stop_tokens_come_from_the_models_files_wherever_they_lie(file: str, tmp_path: Path) -> None:
    """Gemma's turns end with <end_of_turn>, which its tokenizer does not say: in a folder, or the hub's cache."""
    tokenizer = small_tokenizer(
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), eos="<eos>", chat_template=TEMPLATE
    )
    snapshot = tmp_path / "hub" / "models--acme--chat-1b" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    tokenizer.save_pretrained(snapshot)
    ends = [tokenizer.convert_tokens_to_ids(text) for text in ("<eos>", "<end_of_turn>")]
    (snapshot / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    (snapshot / file).write_text(json.dumps({"model_type": "qwen3", "eos_token_id": ends}))
    environ = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in (str(snapshot), "acme/chat-1b", str(snapshot.parents[1])):
        done = subprocess.run(
            [sys.executable, "-c", CODE, name], env=environ, capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == str(ends), done.stderr
