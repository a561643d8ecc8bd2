from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from client.gateway.tool_formats import ARGUMENTS, FORMATS, GENERIC, HERMES, LLAMA, MISTRAL, NAME, ToolFormat
from client.gateway.tool_reader import CallReader
from client.gateway.turns import TextDelta, TokenLogprob, ToolCallDelta, TurnDelta

NAMES = frozenset({"weather", "now"})
WEATHER = '{"city": "Par\\"}]is </x>", "days": [1, {"a": null}]}'


def read(
    form: ToolFormat, pieces: Sequence[str], *, is_cut: bool = False, is_parallel: bool = True
) -> tuple[str, list[tuple[str, str]]]:
    """The text, and each call's name and arguments."""
    numbers = itertools.count()
    reader = CallReader(form, names=NAMES, new_id=lambda: f"id{next(numbers)}", is_parallel=is_parallel)
    said: list[TurnDelta] = []
    for piece in pieces:
        said += reader.push(TextDelta(text=piece))
    said += reader.flush(is_cut=is_cut)
    text = "".join(each.text for each in said if isinstance(each, TextDelta))
    calls: list[list[str]] = []
    for each in said:
        if not isinstance(each, ToolCallDelta):
            continue
        if each.name is not None:
            assert (each.index, each.id) == (len(calls), f"id{len(calls)}")
            calls.append([each.name, ""])
        assert each.index == len(calls) - 1
        calls[-1][1] += each.arguments
    assert reader.has_calls is bool(calls)
    return text, [(name, arguments) for name, arguments in calls]


def written(form: ToolFormat, *calls: tuple[str, str]) -> str:
    texts = [form.call.replace(NAME, name).replace(ARGUMENTS, arguments) for name, arguments in calls]
    return form.first + form.between.join(texts) + form.last


@pytest.mark.parametrize("form", [*FORMATS, GENERIC], ids=lambda form: form.name)
@given(cuts=st.sets(st.integers(0, 400)))
@example(cuts=set(range(400)))
def test_calls_are_found_however_the_text_comes(form: ToolFormat, cuts: set[int]) -> None:
    before = "" if form.is_bare else "Let me <look>: "
    text = before + written(form, ("weather", WEATHER), ("now", "{}"))
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(text)), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    assert read(form, pieces) == (before, [("weather", WEATHER), ("now", "{}")])
    assert read(form, pieces, is_parallel=False) == (before, [("weather", WEATHER)])


_MARKS = ["<tool_call>", "</tool_call>", "<tool", "[TOOL_CALLS]", "[ARGS]", "[", "]", "<|python_tag|>", ";"]
_WORDS = [
    '{"name": "now"',
    '{"name"',
    '"parameters":',
    ', "arguments": ',
    "{}",
    "}",
    '"',
    "\\",
    "null",
    "1,",
    "now",
    "\n",
]
_BITS = st.sampled_from([*_MARKS, *_WORDS])


@given(bits=st.lists(_BITS, max_size=12), form=st.sampled_from([HERMES, MISTRAL, LLAMA]), is_cut=st.booleans())
@example(bits=["[TOOL_CALLS]", "1,", "[ARGS]"], form=MISTRAL, is_cut=True)
def test_whatever_comes_is_read_alike_in_one_piece_and_in_many(
    bits: list[str], form: ToolFormat, is_cut: bool
) -> None:
    text = "".join(bits)
    assert read(form, [text], is_cut=is_cut) == read(form, list(text), is_cut=is_cut)


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        # what models write beside what they were taught
        (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "now"}</tool_call>', ("", [("now", '{"a": 1}')])),
        (HERMES, '\n\n<tool_call>\n{"name": "now"}\n</tool_call>\n', ("", [("now", "{}")])),
        (HERMES, '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}', ("", [("now", '{"a": 1}')])),
        (HERMES, '<tool_call>{"name": "now", "arguments": null}</tool_call>ok', ("ok", [("now", "{}")])),
        (HERMES, '<tool_call>{"name": "now", "arguments": ""}</tool_call>ok', ("ok", [("now", "{}")])),
        (HERMES, '<tool_call>{"name": "now", "arguments": "\\ud83d"}</tool_call>', ("", [("now", '"\\ud83d"')])),
        (
            HERMES,  # the closing mark was forgotten
            '<tool_call>{"name": "now", "arguments": {}}}\n<tool_call>{"name": "now"}</tool_call>b',
            ("b", [("now", "{}"), ("now", "{}")]),
        ),
        (HERMES, '<tool_call>[{"name": "now"}]</tool_call>', ('<tool_call>[{"name": "now"}]</tool_call>', [])),
        (HERMES, '<tool_call>{"name": "now", "arguments": {}}} </tool_call>', ("", [("now", "{}")])),
        (LLAMA, '<|python_tag|>{"name": "now", "parameters": {}}', ("", [("now", "{}")])),
        (LLAMA, '{"type": "function", "name": "now", "parameters": {}}', ("", [("now", "{}")])),
        (MISTRAL, '[TOOL_CALLS]now{"a": 1}', ("", [("now", '{"a": 1}')])),
        (MISTRAL, '[TOOL_CALLS]now[CALL_ID]a1[ARGS]{"a": 1} x', (" x", [("now", '{"a": 1}')])),
        # arguments that aren't JSON are the caller's to judge
        (HERMES, '<tool_call>{"name": "now", "arguments": {a: \'b\'}}</tool_call>', ("", [("now", "{a: 'b'}")])),
        # no call after all
        (HERMES, "a <tool_call> b", ("a <tool_call> b", [])),
        (HERMES, "if a <t", ("if a <t", [])),
        (HERMES, '<tool_call>{"nam": 1}</tool_call>', ('<tool_call>{"nam": 1}</tool_call>', [])),
        (LLAMA, '{"name": "unknown", "parameters": {}}', ('{"name": "unknown", "parameters": {}}', [])),
        (LLAMA, 'x {"name": "now", "parameters": {}}', ('x {"name": "now", "parameters": {}}', [])),
        (LLAMA, "<|python_tag|>now.call()", ("<|python_tag|>now.call()", [])),
        (HERMES, " \n", (" \n", [])),
        (HERMES, '<tool_call><tool_call>{"name": "now"}', ("<tool_call>", [("now", "{}")])),
        (HERMES, '<tool_call>{"x": {' * 400 + "}" * 800, ('<tool_call>{"x": {' * 400 + "}" * 800, [])),
        (HERMES, "<tool_call>" * 9000 + "x", ("<tool_call>" * 9000 + "x", [])),
    ],
)
def test_reads_what_models_write(form: ToolFormat, text: str, expected: tuple[str, list[tuple[str, str]]]) -> None:
    assert read(form, list(text)) == expected


@pytest.mark.parametrize("form", [*FORMATS, GENERIC], ids=lambda form: form.name)
@pytest.mark.parametrize("filler", [" ", "[ ", ", ", "; ", "\n", "a"])
def test_no_more_is_held_back_than_a_call_can_begin_with(form: ToolFormat, filler: str) -> None:
    """Whatever a model goes on writing: it is shown, and what is waited with is read again only so often."""
    for begin in {"", form.opening, form.opening + form.before_call, form.opening + form.before_call + "now"}:
        reader = CallReader(form, names=NAMES, new_id=lambda: "id")
        text = begin + filler * (6000 // len(filler))
        pieces = (number for number, one in enumerate(text) if reader.push(TextDelta(text=one)))
        assert next(pieces, len(text)) < 5000, begin
        assert read(form, [text]) == read(form, list(text)) == (text, [])


def test_an_answer_that_was_cut_short_shows_no_broken_mark() -> None:
    assert read(HERMES, ["Yes <tool_c"], is_cut=True) == ("Yes ", [])
    assert read(HERMES, ['Yes <tool_call>{"na'], is_cut=True) == ("Yes ", [])
    assert read(HERMES, ['<tool_call>{"name": "now", "arguments": {"a'], is_cut=True) == ("", [("now", '{"a')])


def test_probabilities_go_with_the_text_and_not_with_calls() -> None:
    reader = CallReader(HERMES, names=NAMES, new_id=lambda: "id")
    call = json.dumps({"name": "now", "arguments": {}})
    pieces = ["a", " <", "b", f"<tool_call>{call}", "</tool_call>"]
    said = [
        event
        for number, piece in enumerate(pieces)
        for event in reader.push(TextDelta(text=piece, logprobs=(TokenLogprob(token_id=number, logprob=-1.0),)))
    ]
    texts = [(e.text, [p.token_id for p in e.logprobs]) for e in said if isinstance(e, TextDelta)]
    assert texts == [("a", [0]), (" ", [1]), ("<b", [2])]


def test_the_end_has_its_probability_although_it_has_no_text() -> None:
    reader = CallReader(HERMES, names=NAMES, new_id=lambda: "id")
    ending = TokenLogprob(token_id=3, logprob=-1.0)
    said = [*reader.push(TextDelta(text="a")), *reader.push(TextDelta(text="", logprobs=(ending,)))]
    said += reader.flush(is_cut=False)
    assert [e.logprobs for e in said if isinstance(e, TextDelta)] == [(), (ending,)]
