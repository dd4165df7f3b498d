"""The matrix of models finds what is wrong; those that need no further package are played here."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.kit.models import MODELS, Model
from benchmarks.kit.real import RealFamily
from benchmarks.models import Row, compare_prompts, declines, jobs, play_model, table
from rollout.chat.messages import Message

BY_NAME = {model.name: model for model in MODELS}
HERE = [model for model in MODELS if model.template.startswith("ours:") and model.vocabulary == "small"]


def row_of(model: Model, **more: object) -> Row:
    return Row(**{"model": model.name, "bridge": "local", "reader": str(model.reader), "extended": 20, **more})  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("model", HERE, ids=lambda model: model.name)
async def test_models_in_the_style_of_their_documentation_hold(model: Model) -> None:
    """Prompts, tails and calls: nothing is broken, the reader is theirs, and every turn that can be goes token-in."""
    for row in await play_model(model, full=False):
        assert row.wrong(model) == []
        assert min(row.prompts, row.measured, row.read) > 0


def test_what_is_wrong_is_said() -> None:
    """Anything broken, another reader or none, and turns that were not appended to for a reason of ours."""
    model = MODELS[0]
    assert row_of(model).wrong(model) == []
    assert "none is right" not in str(row_of(model, reader="None").wrong(model))
    assert len(row_of(model, reader="None").wrong(model)) == 1
    assert len(row_of(model, broken=Counter({"x": 2})).wrong(model)) == 1
    assert len(row_of(model, extended=0).wrong(model)) == 1
    ours = Counter({"bridge_declined: template: a rule of ours": 2})
    assert len(row_of(model, declined=ours).wrong(model)) == 1


@pytest.mark.parametrize(
    "reason",
    ["the template refuses at its line 6: roles must alternate", "the template does not show the tool message"],
)
def test_what_a_template_cannot_append_to_counts_against_nobody(reason: str) -> None:
    """It is listed, with the template's line or the rule."""
    model = MODELS[0]
    row = row_of(model, declined=Counter({f"bridge_declined: template: {reason}": 100}))
    assert row.wrong(model) == []
    assert f"| {reason} | {model.name}: 100 |" in declines([row])


@pytest.mark.slow
def test_a_prompt_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """And shown from where it parts."""
    family = RealFamily(HERE[0])
    original = RealFamily.render

    def longer(self: RealFamily, messages: list[Message], *args: object) -> list[int]:
        return [*original(self, messages, *args), 65]  # type: ignore[arg-type]

    monkeypatch.setattr(RealFamily, "render", longer)
    row = row_of(HERE[0])
    compare_prompts(family, row)
    assert row.prompts == 0
    assert any("the prompt is" in what for what in row.broken)


def test_models_that_share_a_vocabulary_are_played_together() -> None:
    """Each once, and those that share a tokenizer one behind the other."""
    played = [name for names, _ in jobs(MODELS, full=False) for name in names.split("|")]
    assert sorted(played) == sorted(BY_NAME)
    assert any({"Qwen/Qwen3-8B", "Qwen/Qwen3.5-9B"} <= {*names.split("|")} for names, _ in jobs(MODELS, full=False))


def test_the_families_that_people_train_are_there() -> None:
    """By the readers of what they write: none of these is left out, and each has one."""
    readers = {model.reader for model in MODELS}
    assert {"hermes", "qwen-xml", "llama", "llama4", "mistral", "deepseek", "kimi", "glm", "minimax"} <= readers
    assert {"harmony", "gemma", "gemma4", "granite", "phi", "nemotron", "xlam"} <= readers


def test_the_table_has_a_line_for_each() -> None:
    """With what was counted."""
    assert "| Qwen/Qwen2.5-7B-Instruct | trl qwen2_5, qwen3 | hermes |" in table([row_of(MODELS[0])])
