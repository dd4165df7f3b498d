"""The shipped model plays the bundled environments, and its script makes its tokenizer."""

from __future__ import annotations

import pytest

from benchmarks.embedded_train.corpus import tokenizer_texts
from benchmarks.embedded_train.evaluate import evaluate
from benchmarks.embedded_train.tokenizer import train_tokenizer
from envs.calculator import Calculator
from envs.echo import Echo
from envs.guess_number import GuessNumber
from transports.embedded import MODEL_DIR


@pytest.mark.slow
def test_it_wins_some_games_and_leaves_something_to_learn() -> None:
    """At temperature 1 guess_number is won between 50% and 90% of the time, and every turn ends by itself."""
    report = evaluate(MODEL_DIR, GuessNumber, games=128, seed=11)
    assert 0.5 <= report.reward <= 0.9, str(report)
    assert report.ended > 0.99
    assert report.tokens < 20


@pytest.mark.slow
def test_it_calls_tools() -> None:
    """Most calculator questions are answered with real calls, more than one per question on average."""
    report = evaluate(MODEL_DIR, Calculator, games=64, seed=11)
    assert report.reward > 0.8, str(report)
    assert report.metrics["tool_calls"] > 1.2


def test_it_answers_echo_shortly() -> None:
    """In echo it says something short and ends its turn, over all eight turns."""
    report = evaluate(MODEL_DIR, lambda: Echo(chars=100), games=8, seed=11)
    assert (report.reward, report.turns, report.ended) == (1.0, 8.0, 1.0)
    assert report.tokens < 20


def test_the_script_makes_the_shipped_tokenizer() -> None:
    """Trained again from the script's texts, the tokenizer is the shipped one, byte for byte."""
    again = train_tokenizer(tokenizer_texts(0), vocab_size=2048).to_str(pretty=True)
    assert again == (MODEL_DIR / "tokenizer.json").read_text("utf-8")
