"""Flags and files become one struct."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout.errors import ConfigError
from rollout.store.settings import concurrency_of, given_settings, json_object, overlaid, read_settings


def test_concurrency_is_a_number_or_auto() -> None:
    """Anything else is named."""
    assert [concurrency_of(text) for text in (None, "auto", "12")] == [None, "auto", 12]
    with pytest.raises(ConfigError, match="-c takes a number or auto, not 'many'"):
        concurrency_of("many")


def test_several_servers_are_a_list_and_one_is_an_address() -> None:
    """One address given once is the same setting as in a file, so that a run goes on with either."""
    one = read_settings(None, {"env": "x", "base_url": ["a"]})
    assert (one.base_url, one.base_urls) == ("a", ["a"])
    assert read_settings(None, {"env": "x", "base_url": ["a", "b", "a"]}).base_urls == ["a", "b"]
    assert read_settings(None, {"env": "x"}).base_urls == []


def test_paths_mean_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment's file, the tasks and a tokenizer's folder are absolute; names stay names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tok").mkdir()
    given = given_settings(None, {"env": "e.py:E", "tasks": "t.jsonl", "tokenizer": "tok"})
    assert given == {"env": f"{tmp_path}/e.py:E", "tasks": f"{tmp_path}/t.jsonl", "tokenizer": f"{tmp_path}/tok"}
    named = {"env": "package.module:E", "tokenizer": "org/model"}
    assert given_settings(None, named) == named


def test_bytes_that_are_no_text_are_named() -> None:
    """An argument that is not UTF-8 is one line, before anything is written."""
    with pytest.raises(ConfigError, match="env_args: not UTF-8"):
        given_settings(None, {"env_args": {"path": "caf\udce9"}})


def test_flags_beat_what_is_below_and_mappings_are_merged() -> None:
    """What is not given stays."""
    below = {"seed": 1, "sampling": {"top_p": 0.5, "top_k": 3}}
    above = {"seed": None, "sampling": {"top_p": 0.9}, "env": "x"}
    assert overlaid(below, above) == {"seed": 1, "sampling": {"top_p": 0.9, "top_k": 3}, "env": "x"}


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    """With the byte, and what to do."""
    file = tmp_path / "c.toml"
    file.write_bytes(b'env = "caf\xe9"\n')
    with pytest.raises(ConfigError, match=r"c.toml is not UTF-8 text .byte 11.: save it as UTF-8"):
        given_settings(str(file), {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nowhere.json", "--x 'nowhere.json' is neither a JSON object nor a file: No such file"),
        ("{", "--x: '{' is no JSON: "),
        ("list.json", "--x is a JSON object, not 'list.json'"),
    ],
)
def test_what_is_no_json_object_is_refused(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line that names the flag."""
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[1]")
    with pytest.raises(ConfigError) as raised:
        json_object(text, "--x")
    assert str(raised.value).startswith(said)


def test_a_json_object_is_given_as_text_or_as_a_file(tmp_path: Path) -> None:
    """As a runtime environment of Ray's is."""
    file = tmp_path / "env.json"
    file.write_text('{"working_dir": "."}')
    assert json_object('{"working_dir": "."}', "--x") == json_object(str(file), "--x") == {"working_dir": "."}
    assert json_object(None, "--x") is None
