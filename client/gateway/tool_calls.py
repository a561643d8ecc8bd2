"""How a turn with tools is carried out with one model: its prompt, what holds its answer to calls, what reads them.

Whatever the template teaches is used. A model that was taught no tools, or in a way that isn't in the table of
`client.gateway.tool_formats`, is told of them in a system message, and a grammar sees to it that what it begins to
write as a call becomes one.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from client.chat_template import ChatTemplate, Message
from client.gateway.faults import FieldError
from client.gateway.tool_formats import GENERIC, ToolFormat, format_taught_by
from client.gateway.tool_grammar import calls_grammar
from client.gateway.tool_json import json_object
from client.gateway.tool_prompts import check_results, taught_forms, told_forms
from client.gateway.tool_reader import CallReader
from client.gateway.turns import ChatTurn, NamedTool, TurnPlan
from client.options import GenerationOptions
from client.tokenizer import ModelTokenizer
from protocol.errors import InvalidRequestError
from protocol.messages import MAX_CONSTRAINT_BYTES

MAX_TOOLS = 128
"""As OpenAI's."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SHORT_ID_LENGTH = 9


def needs_tool_plan(turn: ChatTurn) -> bool:
    """Whether anything of the turn has to do with tools."""
    has_calls = any(message.get("tool_calls") or message.get("role") == "tool" for message in turn.messages)
    return bool(turn.tools) or turn.tool_choice not in ("auto", "none") or has_calls


async def tool_plan(tokenizer: ModelTokenizer, turn: ChatTurn) -> TurnPlan:
    """How a turn with tools is carried out.

    Raises:
        FieldError: a tool, the choice of one, or a result in the conversation isn't possible.
        InvalidRequestError: the model can't do it.
    """
    functions = checked_functions(turn)
    check_results(turn.messages, turn.id_places)
    template = tokenizer.tool_template
    if template is None:
        raise InvalidRequestError(
            "this model has no chat template, so that it can't be given tools: use another model"
        )
    taught = format_taught_by(template.source) if template.knows_tools else None
    form = taught or GENERIC
    is_used = bool(functions) and turn.tool_choice != "none"
    options = _options(tokenizer, turn, form, functions) if is_used else turn.options
    prompt = await _prompt(tokenizer, template, turn, taught, functions if is_used else ())
    if not is_used:
        return TurnPlan(prompt=prompt, options=options)
    return TurnPlan(
        prompt=prompt,
        options=options,
        new_reader=partial(
            CallReader,
            form,
            names=frozenset(function["name"] for function in functions),
            new_id=_new_short_id if form.has_short_ids else new_call_id,
            is_parallel=_is_parallel(turn),
        ),
    )


def checked_functions(turn: ChatTurn) -> list[Mapping[str, Any]]:
    """What can be called.

    Raises:
        FieldError: names the field.
    """
    if len(turn.tools) > MAX_TOOLS:
        raise FieldError(f"{len(turn.tools)} tools; at most {MAX_TOOLS} can be given", param="tools")
    functions = [_function(number, tool) for number, tool in enumerate(turn.tools)]
    names = [function["name"] for function in functions]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FieldError(f"two tools have the name {twice!r}: a call couldn't say which is meant", param="tools")
    if turn.tool_choice == "required" and not names:
        raise FieldError("a tool has to be called, but there are none: give tools", param="tool_choice")
    if isinstance(turn.tool_choice, NamedTool) and turn.tool_choice.name not in names:
        raise FieldError(
            f"the tool {turn.tool_choice.name[:100]!r} has to be called, but isn't among the {len(names)} of tools",
            param="tool_choice",
        )
    return functions


def _function(number: int, tool: Mapping[str, Any]) -> Mapping[str, Any]:
    where = f"tools[{number}]"
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise FieldError(f'{where} isn\'t {{"type": "function", "function": {{...}}}}', param=where)
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise FieldError(
            f"{where} has the name {str(name)[:100]!r}; it must have 1 to 64 letters, digits, '_', '-' and '.'",
            param=f"{where}.function.name",
        )
    if parameters is not None and (
        not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object"
    ):
        raise FieldError(
            f"the parameters of the tool {name!r} aren't a JSON schema of an object",
            param=f"{where}.function.parameters",
        )
    return {key: value for key, value in function.items() if value is not None}


async def _prompt(
    tokenizer: ModelTokenizer,
    template: ChatTemplate,
    turn: ChatTurn,
    taught: ToolFormat | None,
    functions: Sequence[Mapping[str, Any]],
) -> list[int]:
    if taught is not None or (template.knows_tools and not functions):
        forms = taught_forms(turn.messages, taught)
        shown = [{"type": "function", "function": function} for function in map(_without_strict, functions)]
    else:
        forms, shown = told_forms(turn.messages, [*map(_without_strict, functions)]), []
    return await _first_possible(tokenizer, template, forms, shown)


def _without_strict(function: Mapping[str, Any]) -> dict[str, Any]:
    """As the model is shown it: how strictly it is held to it is none of its business."""
    return {key: value for key, value in function.items() if key != "strict"}


async def _first_possible(
    tokenizer: ModelTokenizer,
    template: ChatTemplate,
    forms: Sequence[Sequence[Message]],
    tools: Sequence[Mapping[str, Any]],
) -> list[int]:
    """The tokens of the first of these forms that the template can do; the first's error if it can do none."""
    first_error: InvalidRequestError | None = None
    for messages in forms:
        try:
            return await tokenizer.encoded_chat(messages, tools=tools, template=template)
        except InvalidRequestError as error:
            first_error = first_error or error
    assert first_error is not None, "there is at least one form"
    raise first_error


def _options(
    tokenizer: ModelTokenizer, turn: ChatTurn, form: ToolFormat, functions: Sequence[Mapping[str, Any]]
) -> GenerationOptions:
    options = replace(turn.options, shown_specials=form.marks)
    is_strict = any(function.get("strict") for function in functions)
    is_held = turn.tool_choice != "auto" or is_strict or form is GENERIC
    if options.regex is not None or options.grammar is not None:
        raise FieldError(
            "the answer is held to a regex or a grammar, so that it can't be a tool call: leave one of them out",
            param="tools",
        )
    if not is_held and options.json_schema is None:
        return options
    grammar = calls_grammar(
        form,
        functions,
        turn.tool_choice,
        is_parallel=_is_parallel(turn),
        special_ids=tokenizer.special_ids(form.marks),
        answer_schema=None if options.json_schema is None else json.loads(options.json_schema),
    )
    n_bytes = len(grammar.encode())
    if n_bytes > MAX_CONSTRAINT_BYTES:
        raise FieldError(
            f"the tools are {n_bytes} bytes as the grammar that holds an answer to them; at most "
            f"{MAX_CONSTRAINT_BYTES} are taken: give fewer, or none with strict and tool_choice 'auto'",
            param="tools",
        )
    return replace(options, json_schema=None, grammar=grammar)


def _is_parallel(turn: ChatTurn) -> bool:
    """Whether several calls may come; a tool that is chosen by its name is called once, as by OpenAI."""
    return turn.parallel_tool_calls and not isinstance(turn.tool_choice, NamedTool)


def arguments_object(arguments: str) -> dict[str, Any]:
    """A call's arguments for APIs that have them as an object.

    What the model wrote that isn't one is wrapped as Anthropic's documentation wraps it, for the tool to refuse.
    """
    found = json_object(arguments)
    return {"INVALID_JSON": arguments} if found is None else found


def new_call_id() -> str:
    """An id for a call, as OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"


def _new_short_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_SHORT_ID_LENGTH))
