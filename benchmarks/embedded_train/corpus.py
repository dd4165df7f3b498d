"""Texts for the tokenizer: what the environments and the chat format say, and general text made here."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from envs.calculator import Calculator, question
from envs.echo import filler

_COMMON = """
a about after again all also always am an and any are as at away back be because been before best better between big
both bread bring but by call came can city close cold come could day did different do does done door down each early
earth eat end enough even every example eye face family far fast feel few field find fire first fish five follow food
for form found four friend from full game garden gave get give go good great green group grow had hand has have he
head hear help her here high him his home hot hour house how idea if in into is it its just keep kind know land large
last late learn leave left less let letter life light like line list little live long look low made make man many map
may me mean might mind minute moon more morning most mountain move much music must my name near need never new next
night no north not note now number of off often old on once one only open or order other our out over own page paper
part people place plant play point problem question quick rain read ready red rest right river road room round run
said same sand say school sea second see seem sentence set she should show side sing sky small snow so some song soon
sound space stand star start still stone stop story street strong such summer sun sure table take talk tell ten than
that the their them then there these they thing think this those three through time to today together told too took
top town travel tree true try turn two under until up us use very voice wait walk want warm was watch water way we
week well went were what when where which while white who why will wind window winter with without woman wood word
work world would write year yellow yes yet you young your answer tool function result error value string object array
type name user system assistant message content token text data file code return import class model server request
"""
_WORDS = _COMMON.split()

_SYMBOLS = ("{}", "[]", "()", '": "', '", "', "-> ", "=> ", " = ", " == ", "://", "...", "\n\n", "\n    ", "``", " - ")
_BEYOND_ASCII = "äöüéèñçßøåœàâêîôûíóúāēīōū—–’“”…€£°×÷≤≥→αβγδλπσωабвгдежзиклмнопрст日本語中文字한국어😀🚀"  # noqa: RUF001 - characters that look like others are text too


def tokenizer_texts(seed: int) -> Iterator[str]:
    """Some thousand short texts; the same ones for the same seed."""
    draw = random.Random(seed)
    for _ in range(600):
        yield _chat(draw)
    for index in range(200):
        yield f"turn {index % 12}: {filler(draw.randint(50, 400), index)}"
    for _ in range(2500):
        yield " ".join(draw.choices(_WORDS, k=30)).capitalize() + draw.choice(".!?")
    for _ in range(300):
        yield "".join(f"{draw.choice(_WORDS)}{draw.choice(_SYMBOLS)}" for _ in range(20))
        yield " ".join(draw.choices(_BEYOND_ASCII, k=8))


def _chat(draw: random.Random) -> str:
    """The fixed phrases of the chat format and the environments, each often enough to become few tokens."""
    low, guess = draw.randint(0, 60), draw.randint(1, 64)
    call = {"name": draw.choice(("add", "subtract", "multiply")), "arguments": {"a": low, "b": guess}}
    lines = [
        "system\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
        "function signatures within <tools></tools> XML tags:\n<tools>",
        *(json.dumps(tool) for tool in Calculator.tools),
        "</tools>\n\nFor each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n{"name": <function-name>, "arguments": <args-json-object>}',
        question(draw, 30)["question"],
        f"user\nassistant\nover {low}, under {low + guess}\n\n{json.dumps(call)}\n",
        f"Guess my number from 1 to {low + 1}. {guess} guesses left.",
        f"Higher than {low}. 1 guess left.\nLower than {guess}. 2 guesses left.",
        f"Please answer with a number from 1 to {low}.\nThe answer is {guess}.\nThe answers are {low} and {guess}.",
        "Go on.\nI see.\nTell me more.\nAnd then?\nI hear you.",
    ]
    return "\n".join(lines)
