"""What the grammars take, asked of the library that holds answers to them."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from client.gateway.tool_formats import ARGUMENTS, FORMATS, GENERIC, HERMES, MISTRAL, NAME, ToolFormat
from client.gateway.tool_grammar import calls_grammar
from client.gateway.turns import NamedTool, ToolChoice
from tests.support.tiny_tokenizer import tiny_tokenizer

SPECIALS = ("[TOOL_CALLS]", "<|tool_call|>")
"""Of the marks, those that are special tokens here; the others are text."""
CITIES: Any = {"c": {"type": "string", "enum": ["Paris", "Rome"]}}
TOOLS: list[dict[str, Any]] = [
    {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/c"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": CITIES,
        },
    },
    {"name": "now"},
]


def special_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    return tokenizer


def takes(grammar: str, text: str) -> bool:
    """Whether the grammar takes the text, and lets it end there."""
    tokenizer = special_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    matcher = LLMatcher(LLTokenizer(tokenizer.to_str(), eos_token=3), grammar)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


def grammar_of(form: ToolFormat, choice: ToolChoice, *, is_parallel: bool = True, schema: Any = None) -> str:
    ids = {text: special_tokenizer().token_to_id(text) for text in SPECIALS if text in form.marks}
    return calls_grammar(form, TOOLS, choice, is_parallel=is_parallel, special_ids=ids, answer_schema=schema)


@pytest.mark.parametrize("form", [*FORMATS, GENERIC], ids=lambda form: form.name)
def test_calls_are_taken_as_models_write_them_and_nothing_else(form: ToolFormat) -> None:
    def written(name: str, arguments: str) -> str:
        return form.call.replace(NAME, name).replace(ARGUMENTS, arguments)

    weather, now = written("weather", '{"city": "Rome"}'), written("now", "{}")
    one = form.first + weather + form.last
    two = form.first + weather + form.between + now + form.last
    wrong = one.replace("Rome", "Oslo")
    required, alone = grammar_of(form, "required"), grammar_of(form, "required", is_parallel=False)
    assert [takes(required, text) for text in (one, two, wrong, "Hi", f"Hi {one}")] == [True, True] + [False] * 3
    assert [takes(alone, text) for text in (one, two)] == [True, False]
    named = grammar_of(form, NamedTool(name="now"), is_parallel=False)
    assert [takes(named, text) for text in (form.first + now + form.last, one)] == [True, False]
    free, free_alone = grammar_of(form, "auto"), grammar_of(form, "auto", is_parallel=False)
    assert [takes(free, text) for text in ("", "Hi < there", one, two, wrong)] == [True] * 5
    assert not takes(free, one.replace("weather", "nosuch"))
    assert [takes(free_alone, text) for text in ("Hi", one, two)] == [True, True, False]
    assert form.is_bare or (takes(free, f"Hi {one}") and not takes(free, f"Hi {one[:-3]}"))


@pytest.mark.parametrize("form", [HERMES, MISTRAL], ids=lambda form: form.name)
def test_an_answer_may_be_held_to_a_schema_or_be_a_call(form: ToolFormat) -> None:
    grammar = grammar_of(form, "auto", schema={"type": "object", "properties": {"a": {"type": "integer"}}})
    call = form.first + form.call.replace(NAME, "now").replace(ARGUMENTS, "{}") + form.last
    assert [takes(grammar, text) for text in ('{"a": 1}', call, "Hi")] == [True, True, False]


def test_tools_are_held_to_as_strictly_as_they_ask_for() -> None:
    odd = {"type": "object", "properties": {"city": {"enum": ["Rome"]}, "id": {"type": "string", "format": "odd"}}}
    tools: list[dict[str, Any]] = [{"name": "now", "parameters": odd}]
    call = HERMES.call.replace(NAME, "now").replace(ARGUMENTS, '{"city": "Oslo"}')
    lenient = calls_grammar(HERMES, tools, "required", is_parallel=True, special_ids={})
    assert [takes(lenient, text) for text in (call, call.replace("Oslo", "Rome"))] == [False, True]
    strict = calls_grammar(HERMES, [tools[0] | {"strict": True}], "auto", is_parallel=True, special_ids={})
    with pytest.raises(AssertionError, match="Unknown format: odd"):
        takes(strict, call)
    del odd["properties"]["id"]  # type: ignore[attr-defined]
    strict = calls_grammar(HERMES, [tools[0] | {"strict": True}], "auto", is_parallel=True, special_ids={})
    assert [takes(strict, text) for text in (call, call.replace("Oslo", "Rome"))] == [False, True]
