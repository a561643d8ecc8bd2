"""The formats in which models write tool calls: a table, and which of them a chat template teaches. Pure.

A format says how a call looks, to whoever reads answers and to grammars that enforce it, and nothing else; the
one reader of all of them is `client.gateway.tool_reader`. A model whose template knows no tools, or teaches
a way to write calls that isn't in the table, is told of the tools in a system message and given `GENERIC`.
"""

from __future__ import annotations

from dataclasses import dataclass

NAME, ARGUMENTS = "$NAME", "$ARGUMENTS"
"""Where a call's name and arguments stand in `ToolFormat.call`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a family of models writes calls."""

    name: str
    taught_by: tuple[str, ...]
    """What a template has that teaches this format: all of these."""
    not_by: tuple[str, ...] = ()
    """What it has if it teaches another one that looks alike."""
    opening: str
    """What calls begin with, wherever in the answer."""
    is_bare: bool = False
    """Whether an answer that begins with a JSON object may be a call, too, if it names one of the tools."""
    before_call: str = ""
    """What stands between `opening` and a name, where calls aren't objects with a name in them."""
    name_ends: tuple[str, ...] = ()
    """Likewise: what follows a name. None: a call is an object with a name in it, or a list of those."""
    skipped: tuple[str, ...] = ()
    """What may stand between two calls and isn't text."""
    closing: str = ""
    """What ends calls, if anything does: whatever is between a call and this is no text for people."""
    call: str
    """A call as the model was taught to write it."""
    first: str = ""
    """Before the first call, if not part of `call`."""
    between: str = ""
    last: str = ""
    marks: tuple[str, ...] = ()
    """What may be special tokens, whose text doesn't count as text elsewhere."""
    has_short_ids: bool = False
    """Whether the template demands ids of nine letters and digits."""


HERMES = ToolFormat(
    name="hermes",  # Hermes 2 Pro and 3, Qwen 2.5 and 3, SmolLM3 and many others
    taught_by=("<tool_call>", "arguments"),
    not_by=("<function=", "<arg_key>", "<parameter=", "<tool_call>["),
    opening="<tool_call>",
    closing="</tool_call>",
    call=f'<tool_call>\n{{"name": "{NAME}", "arguments": {ARGUMENTS}}}\n</tool_call>',
    between="\n",
    marks=("<tool_call>", "</tool_call>"),
)
LLAMA = ToolFormat(
    name="llama",  # Llama 3.1 to 3.3
    taught_by=("<|python_tag|>", '"parameters"'),
    opening="<|python_tag|>",
    is_bare=True,
    skipped=(";", ","),
    call=f'{{"name": "{NAME}", "parameters": {ARGUMENTS}}}',
    between="; ",
    marks=("<|python_tag|>",),
)
MISTRAL = ToolFormat(
    name="mistral",  # a list of objects, until 2024
    taught_by=("[TOOL_CALLS]",),
    not_by=("[ARGS]",),
    opening="[TOOL_CALLS]",
    name_ends=("[CALL_ID]", "[ARGS]", "{"),
    skipped=("[", ",", "]"),
    call=f'{{"name": "{NAME}", "arguments": {ARGUMENTS}}}',
    first="[TOOL_CALLS][",
    between=", ",
    last="]",
    marks=("[TOOL_CALLS]",),
    has_short_ids=True,
)
MISTRAL_NAMED = ToolFormat(
    name="mistral_named",  # a name and its arguments, since 2025
    taught_by=("[TOOL_CALLS]", "[ARGS]"),
    opening="[TOOL_CALLS]",
    name_ends=("[CALL_ID]", "[ARGS]", "{"),
    skipped=("[", ",", "]"),
    call=f"[TOOL_CALLS]{NAME}[ARGS]{ARGUMENTS}",
    marks=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    has_short_ids=True,
)
_CALLS, _CALL, _SEP, _CALL_END, _CALLS_END = (
    f"<\uff5c{word}\uff5c>"
    for word in ("tool▁calls▁begin", "tool▁call▁begin", "tool▁sep", "tool▁call▁end", "tool▁calls▁end")
)
DEEPSEEK = ToolFormat(
    name="deepseek",  # V3 and R1
    taught_by=(_CALLS, "```json"),
    opening=_CALLS,
    before_call=f"{_CALL}function{_SEP}",
    name_ends=("\n```json\n",),
    skipped=("```", _CALL_END),
    closing=_CALLS_END,
    call=f"{_CALL}function{_SEP}{NAME}\n```json\n{ARGUMENTS}\n```{_CALL_END}",
    first=_CALLS,
    between="\n",
    last=_CALLS_END,
    marks=(_CALLS, _CALL, _SEP, _CALL_END, _CALLS_END),
)
DEEPSEEK_NAMED = ToolFormat(
    name="deepseek_named",  # V3.1
    taught_by=(_CALLS,),
    not_by=("```json",),
    opening=_CALLS,
    before_call=_CALL,
    name_ends=(_SEP,),
    skipped=(_CALL_END,),
    closing=_CALLS_END,
    call=f"{_CALL}{NAME}{_SEP}{ARGUMENTS}{_CALL_END}",
    first=_CALLS,
    last=_CALLS_END,
    marks=DEEPSEEK.marks,
)
GRANITE = ToolFormat(
    name="granite",  # Granite 3
    taught_by=("<|tool_call|>",),
    not_by=("<|/tool_call|>",),
    opening="<|tool_call|>",
    skipped=("[", ",", "]"),
    call=f'{{"name": "{NAME}", "arguments": {ARGUMENTS}}}',
    first="<|tool_call|>[",
    between=", ",
    last="]",
    marks=("<|tool_call|>",),
)
PHI = ToolFormat(
    name="phi",  # Phi 4 mini
    taught_by=("<|tool_call|>", "<|/tool_call|>"),
    opening="<|tool_call|>",
    skipped=("[", ",", "]"),
    closing="<|/tool_call|>",
    call=GRANITE.call,
    first="<|tool_call|>[",
    between=", ",
    last="]<|/tool_call|>",
    marks=("<|tool_call|>", "<|/tool_call|>"),
)
GENERIC = ToolFormat(
    name="generic",
    taught_by=(),
    opening=HERMES.opening,
    closing=HERMES.closing,
    call=HERMES.call,
    between=HERMES.between,
    marks=HERMES.marks,
)
FORMATS = (DEEPSEEK, DEEPSEEK_NAMED, MISTRAL_NAMED, MISTRAL, PHI, GRANITE, HERMES, LLAMA)


def format_taught_by(template: str) -> ToolFormat | None:
    """The format that the source of a template teaches; None if it isn't one of the table."""
    plain = template.replace('\\"', '"').replace("\\n", "\n")  # as the model sees what stands in string literals
    return next(
        (
            each
            for each in FORMATS
            if all(mark in plain for mark in each.taught_by) and not any(mark in plain for mark in each.not_by)
        ),
        None,
    )
