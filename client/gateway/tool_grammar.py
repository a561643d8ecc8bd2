"""Grammars that hold an answer to tool calls, in llguidance's form of Lark. Pure.

The call is written as the model was taught to write it, and its arguments follow the tool's own JSON schema. Marks
that are special tokens are named by their ids: their text, written with other tokens, is something else to a model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from client.gateway.tool_formats import ARGUMENTS, NAME, ToolFormat
from client.gateway.turns import NamedTool, ToolChoice

_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As models are trained to write JSON; free spacing invites them to write spaces without end."""


def calls_grammar(
    form: ToolFormat,
    tools: Sequence[Mapping[str, Any]],
    choice: ToolChoice,
    *,
    is_parallel: bool,
    special_ids: Mapping[str, int],
    answer_schema: Mapping[str, Any] | None = None,
) -> str:
    """A grammar of the answers that `choice` allows: calls; with `auto` also text, or JSON of `answer_schema`.

    `tools` are functions (`name`, `parameters`, `strict`); `special_ids` are of the marks that are special tokens.
    Where a call is the model's choice, only strict tools have their arguments held to more than being an object.
    """
    wanted = [tool for tool in tools if not isinstance(choice, NamedTool) or tool["name"] == choice.name]
    is_amid_text = choice == "auto" and answer_schema is None and not form.is_bare
    write = _Writer(form, special_ids, is_opened=is_amid_text, holds_all=choice != "auto")
    rules = [write.call(number, tool) for number, tool in enumerate(wanted)]
    rules.append("call: " + " | ".join(f"call_{number}" for number in range(len(wanted))))
    if is_amid_text:
        return "\n".join([*write.text_with_calls(is_parallel=is_parallel), *rules]) + "\n"
    more = _joined("(", write.text(form.between), "call", ")*") if is_parallel else ""
    rules.append("calls: " + _joined(write.text(form.first), "call", more, write.text(form.last)))
    if choice != "auto":
        start = ["start: calls"]
    elif answer_schema is not None:
        start = ["start: answer | calls", f"answer: {_json(answer_schema)}"]
    else:
        start = ["start: TEXT | calls", "TEXT: /([^{\\s](.|\\n)*)?/"]
    return "\n".join([*start, *rules]) + "\n"


class _Writer:
    """Writes a format's texts as the grammar's terminals; if `is_opened`, the opening mark was written before."""

    def __init__(
        self, form: ToolFormat, special_ids: Mapping[str, int], *, is_opened: bool, holds_all: bool
    ) -> None:
        self._form = form
        self._special_ids = special_ids
        self._opened = form.opening if is_opened else ""
        self._holds_all = holds_all
        marks = sorted(special_ids, key=len, reverse=True)
        self._marks = re.compile(f"({'|'.join(map(re.escape, marks))})" if marks else "(?!)()")

    def text(self, text: str) -> str:
        """The terminals of a text; empty for none."""
        pieces = [piece for piece in self._marks.split(text.removeprefix(self._opened)) if piece]
        return _joined(
            *(
                f"<[{self._special_ids[piece]}]>" if piece in self._special_ids else _quoted(piece)
                for piece in pieces
            )
        )

    def call(self, number: int, tool: Mapping[str, Any]) -> str:
        """The rule of one tool's call."""
        before, after = self._form.call.replace(NAME, tool["name"]).split(ARGUMENTS)
        written = _joined(self.text(before), f"arguments_{number}", self.text(after))
        return f"call_{number}: {written}\narguments_{number}: {self._arguments(tool)}"

    def _arguments(self, tool: Mapping[str, Any]) -> str:
        schema = tool.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}
        if tool.get("strict"):
            return _json(schema)
        if self._holds_all:
            return _json(schema, is_lenient=True)  # schemas are for readers too: not all in them can be held
        return _json({"type": "object"})

    def text_with_calls(self, *, is_parallel: bool) -> list[str]:
        """The rules by which an answer is text, and calls wherever the mark comes that begins them."""
        form = self._form
        special_id = self._special_ids.get(form.opening)
        opened = f"TEXT <[{special_id}]>" if special_id is not None else f"TEXT {_quoted(form.opening)}"
        head = f"head: {opened}" if special_id is not None else f"head[lazy]: {opened}"
        repeats_mark = form.call.startswith(form.opening)
        calls = "head call" if repeats_mark else _joined("head", self.text(form.first), "call")
        if is_parallel and not repeats_mark:
            calls = _joined(calls, "(", self.text(form.between), "call )*")
        calls = _joined(calls, self.text(form.last))
        text = ["tail: TEXT", "TEXT: /(.|\\n)*/", head]
        return [f"start: ( {calls} )* tail" if is_parallel else f"start: {calls} | tail", *text]


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(schema: Mapping[str, Any], *, is_lenient: bool = False) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": {**_SPACING, "lenient": is_lenient}}, ensure_ascii=False)
