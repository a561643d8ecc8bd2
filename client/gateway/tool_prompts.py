"""Conversations with tools as chat templates take them: what shapes templates disagree about. Pure.

Templates disagree on whether a call's arguments are an object or its text, and some know no tools at all. So a
conversation has several forms here, the usual first; the one that is used is the first that the template can do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from client.chat_template import Message
from client.gateway.faults import FieldError
from client.gateway.tool_formats import ARGUMENTS, GENERIC, NAME, ToolFormat
from client.gateway.tool_json import json_object

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_TOLD = """You can call functions. These are the functions that there are, one JSON description on each line:
{functions}

To call a function, answer with its name and arguments in exactly this form, once for each call:
<tool_call>
{{"name": "name of the function", "arguments": {{"name of an argument": "its value"}}}}
</tool_call>
What a function returned comes next, between <tool_response> and </tool_response>. Where no function is needed, \
answer as usual."""


def check_results(messages: Sequence[Message], id_places: Mapping[int, str]) -> None:
    """Refuse results of calls that nobody made; `id_places` as of `ChatTurn`.

    Raises:
        FieldError: names where the call is named.
    """
    known: set[str] = set()
    for number, message in enumerate(messages):
        known.update(str(call.get("id")) for call in message.get("tool_calls") or ())
        call_id = message.get("tool_call_id")
        if message.get("role") == "tool" and call_id not in known:
            place = id_places.get(number, f"messages[{number}].tool_call_id")
            raise FieldError(
                f"a result of the tool call {str(call_id)[:100]!r} comes, but no assistant message before it has a "
                "call with this id",
                param=place,
            )


def taught_forms(messages: Sequence[Message], form: ToolFormat | None) -> tuple[list[Message], ...]:
    """For a template that knows tools: with arguments as objects, then as text."""
    has_short_ids = form is not None and form.has_short_ids
    forms = [
        [_taught(message, is_text=is_text, has_short_ids=has_short_ids) for message in messages]
        for is_text in (False, True)
    ]
    return (forms[0], forms[1]) if forms[0] != forms[1] else (forms[0],)


def told_forms(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[list[Message], ...]:
    """For a template that doesn't: told in a system message, or else at the beginning of the first user's."""
    plain: list[Message] = list(_told_messages(messages))
    if not tools:
        return (plain,)
    functions = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    told = _TOLD.format(functions=functions)
    system = plain[0]["content"] if plain[0]["role"] in ("system", "developer") else ""
    rest = plain[1:] if system else plain
    text = f"{system}\n\n{told}" if system else told
    in_system: list[Message] = [{"role": "system", "content": text}, *rest]
    if not rest or rest[0]["role"] != "user":
        return (in_system,)
    in_user: list[Message] = [{"role": "user", "content": f"{text}\n\n{rest[0]['content']}"}, *rest[1:]]
    return in_system, in_user


def _taught(message: Message, *, is_text: bool, has_short_ids: bool) -> Message:
    changed = dict(message)
    if changed.get("content") is None:
        changed["content"] = ""
    if has_short_ids and changed.get("tool_call_id") is not None:
        changed["tool_call_id"] = _short(str(changed["tool_call_id"]))
    calls = changed.pop("tool_calls", None)
    if calls:
        changed["tool_calls"] = [_call(call, is_text=is_text, has_short_ids=has_short_ids) for call in calls]
    return changed


def _call(call: Mapping[str, Any], *, is_text: bool, has_short_ids: bool) -> Mapping[str, Any]:
    function = call["function"]
    arguments = function.get("arguments") or "{}"
    if not is_text:  # what a model wrote that is no object stays its text
        found = json_object(arguments)
        arguments = arguments if found is None else found
    call_id = _short(str(call.get("id"))) if has_short_ids else call.get("id")
    return {"id": call_id, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _short(call_id: str) -> str:
    """An id that templates take that want nine letters and digits; the same for the same."""
    return call_id if _SHORT_ID.fullmatch(call_id) else hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _told_messages(messages: Sequence[Message]) -> Iterator[dict[str, Any]]:
    """Calls as the text that they were, and results as what the user says: roles then alternate as ever."""
    results: list[str] = []
    for message in messages:
        content = message.get("content") or ""
        if message["role"] == "tool":
            results.append(f"<tool_response>\n{content}\n</tool_response>")
            continue
        if results and message["role"] == "user":
            content = "\n".join([*results, content])
        elif results:
            yield {"role": "user", "content": "\n".join(results)}
        results = []
        calls = [_written(call) for call in message.get("tool_calls") or ()]
        yield {"role": message["role"], "content": "\n".join([content, *calls] if content else calls or [""])}
    if results:
        yield {"role": "user", "content": "\n".join(results)}


def _written(call: Mapping[str, Any]) -> str:
    function = call["function"]
    return GENERIC.call.replace(NAME, function["name"]).replace(ARGUMENTS, function.get("arguments") or "{}")
