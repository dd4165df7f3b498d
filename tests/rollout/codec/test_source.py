"""What a template's source says of itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.codec.source import Source, any_of, read_source


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% for p in m['content'] %}{{ p.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% for p in m.content | selectattr('type') %}{{ p }}{% endfor %}{% endfor %}", True),
        (
            "{% set rest = messages[1:] %}{% for m in rest %}{% for p in m.content %}{{ p }}{% endfor %}{% endfor %}",
            True,
        ),
        (
            "{% macro show(c) %}{% for p in c %}{{ p }}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ show(m.content) }}{% endfor %}",
            True,
        ),
        (
            "{% macro show(c) %}{% for p in c %}{{ p }}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ show(m.tool_calls) }}{{ m.content }}{% endfor %}",
            False,
        ),
        ("{% for m in messages %}{% for c in m.tool_calls %}{{ c.name }}{% endfor %}{% endfor %}", False),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", False),
    ],
)
def test_parts_are_for_templates_that_loop_over_content(template: str, parts: bool) -> None:
    """As vLLM decides it: a loop over a message's content, or over what a macro is handed of it."""
    assert read_source(template).takes_parts is parts


@pytest.mark.parametrize(
    ("template", "sought"),
    [
        ("{% if '/no_think' in messages[0].content %}x{% endif %}", ("/no_think",)),
        ("{% if messages[0].content.startswith('<tool_response>') %}x{% endif %}", ("<tool_response>",)),
        ("{% if messages[0].content == 'detailed thinking off' %}x{% endif %}", ("detailed thinking off",)),
        (
            "{% for flag in ['/think', '/no_think'] %}{{ flag in messages[0].content }}{% endfor %}",
            ("/no_think", "/think"),
        ),
        ("{% set flag = '/no_think' %}{{ flag in messages[0].content }}", ("/no_think",)),
        ("{{ messages[0].content.split('</think>')[-1] }}", ("</think>",)),
        ("{{ messages[0].content | replace('secret', '') }}", ("secret",)),
        (
            "{% if messages[0].role == 'user' and 'tool_calls' in messages[0] %}{{ '<|im_start|>' + 'x' }}{% endif %}",
            (),
        ),
    ],
)
def test_what_a_template_looks_for_is_read_from_it(template: str, sought: tuple[str, ...]) -> None:
    """The strings that it compares with, not those that it writes, nor roles and keys."""
    assert read_source(template).sought == sought


def test_a_template_that_folds_case_finds_either() -> None:
    """A text in capitals is found by a template that lowers it first."""
    source = read_source("{% if '/no_think' in messages[0].content | lower %}x{% endif %}")
    assert source.may_find("please /NO_THINK")
    assert not source.may_find("please think")


@given(st.text(max_size=40))
def test_no_source_makes_it_raise(text: str) -> None:
    """What is no Jinja says nothing of itself: then it may look for anything."""
    source = read_source(text)
    assert isinstance(source, Source)
    assert source.sought is not None or source.may_find("x")


def test_texts_are_alike_where_the_same_is_found_in_the_same_order() -> None:
    """Whatever the words around it; but not where a piece is empty, or only space, and another's is not."""
    source = Source(sought=("</think>", "<think>"))
    assert source.finds("no such thing") is False
    alike = ["<think>a</think>\n\nb", "<think>other words</think> and more"]
    assert len({source.finds(text) for text in alike}) == 1
    others = [
        "a</think>b",
        "<think></think>b",
        "<think> </think>b",
        "<think>a</think>",
        "<think>a</think> ",
        " <think>a</think>b",
    ]
    others += ["</think>a<think>b", "<think>a</think>b</think>c", alike[0]]
    assert len({source.finds(text) for text in others}) == len(others)
    assert source.finds("<think>" * 99) is True
    assert Source(sought=None).finds("anything") is True
    assert Source(sought=("/no_think",), folds=True).finds("a /NO_THINK b") == ((True, True), "/no_think", (True, True))


def test_what_either_of_two_named_templates_looks_for_may_be_found() -> None:
    """With tools another template is used than without: each turn's may be either's."""
    plain, looks = read_source("{{ messages }}"), read_source("{{ '/no_think' in messages[0].content }}")
    folds = read_source("{{ 'STOP' in messages[0].content | upper }}")
    assert any_of([plain, looks]).may_find("now /no_think")
    assert not any_of([plain, plain]).may_find("now /no_think")
    assert any_of([looks, folds]).may_find("Stop")
    assert any_of([looks, folds]).may_find("now /no_think")
    assert any_of([plain, read_source("{% broken")]).may_find("anything")
