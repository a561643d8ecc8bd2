from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from client.gateway.faults import FieldError
from client.gateway.tool_calls import arguments_object, needs_tool_plan, tool_plan
from client.gateway.tool_formats import ToolFormat, format_taught_by
from client.gateway.turns import ChatTurn, NamedTool, TextDelta, ToolCallDelta
from client.model_files import ModelFiles
from client.options import GenerationOptions
from client.tokenizer import ModelTokenizer
from protocol.ids import Revision
from tests.support.scripted_cluster import scripted_manifest
from tests.support.tiny_tokenizer import CHAT_TEMPLATE, tiny_files, tiny_tokenizer

HERMES = """{%- if tools %}<|im_start|>system
{{ messages[0].content if messages[0].role == 'system' }}
<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}
</tools> Answer {\\"name\\": <function-name>, \\"arguments\\": <args>} within <tool_call></tool_call><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
MISTRAL = """{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for m in messages %}{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}
{%- if c.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}
{{ c.function | tojson }}{% endfor %}]{% else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}"""
DEEPSEEK = """{{ tools }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}
{{- '<\uff5ctool▁calls▁begin\uff5c>' + c.function.name + '\n```json\n' + c.function.arguments }}
{%- endfor %}{% endfor %}"""
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT_TEMPLATE
)
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": None, "parameters": {"type": "object", "properties": {}}},
}
LONG = {"type": "function", "function": {"name": "long", "parameters": {"description": "x" * 70_000}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
USED: list[dict[str, Any]] = [
    {"role": "user", "content": "Is it warm?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "20 degrees"},
    {"role": "user", "content": "So?"},
]


def tokenizer_with(template: str, *, tool_template: str | None = None) -> ModelTokenizer:
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True)])
    contents = tiny_files() | {
        "tokenizer.json": tokenizer.to_str().encode(),
        "chat_template.jinja": template.encode(),
    }
    if tool_template is not None:
        contents["chat_template_tool_use.jinja"] = tool_template.encode()
    manifest = scripted_manifest(contents, 300)
    return ModelTokenizer(ModelFiles(revision=Revision("0" * 64), manifest=manifest, contents=contents))


def turn(**changes: Any) -> ChatTurn:
    return ChatTurn(**({"model": "m", "messages": tuple(USED), "tools": (WEATHER,)} | changes))


def text_of(tokenizer: ModelTokenizer, prompt: Any) -> str:
    return tokenizer._tokenizer.decode(prompt, skip_special_tokens=False)  # type: ignore[union-attr]


async def test_a_template_that_teaches_calls_is_used_as_it_is() -> None:
    tokenizer = tokenizer_with(HERMES)
    plan = await tool_plan(tokenizer, turn())
    prompt = text_of(tokenizer, plan.prompt)
    assert '<tools>{"type": "function", "function": {"name": "weather", "parameters"' in prompt
    assert '{"name": "weather", "arguments": {"city": "Rome"}}' in prompt
    assert "None" not in prompt
    assert plan.options == GenerationOptions(shown_specials=("<tool_call>", "</tool_call>"))
    assert plan.new_reader is not None
    reader = plan.new_reader()
    (call,) = reader.push(TextDelta(text='<tool_call>{"name": "weather", "arguments": {}}</tool_call>'))
    assert isinstance(call, ToolCallDelta)
    assert (call.id or "").startswith("call_")


@pytest.mark.parametrize("choice", ["required", NamedTool(name="weather"), "auto"])
async def test_what_has_to_be_a_call_is_held_to_one(choice: Any) -> None:
    strict = WEATHER | {"function": WEATHER["function"] | {"strict": True}}
    plan = await tool_plan(tokenizer_with(HERMES), turn(tool_choice=choice, tools=(strict,)))
    assert plan.options.grammar is not None
    assert ("TEXT" in plan.options.grammar) is (choice == "auto")
    assert ("call )*" in plan.options.grammar) is (choice in ("auto", "required"))


async def test_marks_that_are_special_tokens_are_shown_and_held_to_by_their_ids() -> None:
    tokenizer = tokenizer_with(MISTRAL)
    plan = await tool_plan(tokenizer, turn(tool_choice="required"))
    special_id = tokenizer.special_ids(["[TOOL_CALLS]"])["[TOOL_CALLS]"]
    assert f"<[{special_id}]>" in (plan.options.grammar or "")
    stream = tokenizer.text_stream(plan.options.shown_specials)
    assert stream is not None
    ids = tokenizer._tokenizer.encode('a[TOOL_CALLS][{"name"', add_special_tokens=False).ids  # type: ignore[union-attr]
    assert "".join([*map(stream.push, ids), stream.flush()]) == 'a[TOOL_CALLS][{"name"'
    assert "[TOOL_CALLS][" in text_of(tokenizer, plan.prompt)  # although the call's id had more than 9 characters


async def test_a_template_that_wants_arguments_as_text_gets_them_so() -> None:
    tokenizer = tokenizer_with(DEEPSEEK)
    plan = await tool_plan(tokenizer, turn())
    assert '\n```json\n{"city": "Rome"}' in text_of(tokenizer, plan.prompt)


@pytest.mark.parametrize(("template", "role"), [(CHAT_TEMPLATE, "system"), (NO_SYSTEM, "user")])
async def test_a_model_that_was_taught_no_tools_is_told_of_them(template: str, role: str) -> None:
    tokenizer = tokenizer_with(template)
    plan = await tool_plan(tokenizer, turn())
    prompt = text_of(tokenizer, plan.prompt)
    assert prompt.startswith(f"<s><|im_start|>{role}\nYou can call functions.")
    assert '\n{"name": "weather", "parameters": {"type": "object", "properties": {}}}\n' in prompt
    assert 'assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>' in prompt
    assert "user\n<tool_response>\n20 degrees\n</tool_response>\nSo?<|im_end|>" in prompt
    assert plan.options.grammar is not None


async def test_a_template_for_tools_alone_is_used_where_tools_are() -> None:
    tokenizer = tokenizer_with(CHAT_TEMPLATE, tool_template=HERMES)
    assert "<tools>" in text_of(tokenizer, (await tool_plan(tokenizer, turn())).prompt)
    assert await tokenizer.encoded_chat(USED[:1]) == await tokenizer_with(CHAT_TEMPLATE).encoded_chat(USED[:1])


async def test_tools_that_must_not_be_used_are_not_shown() -> None:
    tokenizer = tokenizer_with(HERMES)
    plan = await tool_plan(tokenizer, turn(tool_choice="none"))
    assert plan.new_reader is None
    assert "<tools>" not in text_of(tokenizer, plan.prompt)
    assert not needs_tool_plan(turn(messages=USED[:1], tools=()))


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"tools": (WEATHER, WEATHER)}, "tools", "two tools have the name 'weather'"),
        ({"tools": (WEATHER,) * 129}, "tools", "129 tools"),
        ({"tools": ({"type": "function"},)}, "tools[0]", "isn't"),
        ({"tools": ({"type": "function", "function": {"name": "a b"}},)}, "tools[0].function.name", "'a b'"),
        ({"tools": (), "tool_choice": "required"}, "tool_choice", "there are none"),
        ({"tool_choice": NamedTool(name="other")}, "tool_choice", "'other'"),
        ({"messages": (USED[0], USED[2])}, "messages[1].tool_call_id", "'call_1'"),
        ({"options": GenerationOptions(regex="a")}, "tools", "regex"),
        ({"tools": (LONG,), "tool_choice": "required"}, "tools", "65536"),
    ],
)
async def test_what_cannot_be_is_refused_by_its_name(changes: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(FieldError) as raised:
        await tool_plan(tokenizer_with(HERMES), turn(**changes))
    assert raised.value.param == param
    assert words in raised.value.message


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (HERMES, "hermes"),
        (MISTRAL, "mistral"),
        (MISTRAL + "[ARGS]", "mistral_named"),
        (DEEPSEEK, "deepseek"),
        (DEEPSEEK.replace("```json", ""), "deepseek_named"),
        ('{{ "<|python_tag|>" }}{"name": function name, "parameters": dictionary}', "llama"),
        ("<|tool_call|> arguments", "granite"),
        ("<|tool_call|> arguments <|/tool_call|>", "phi"),
        ("<tool_call><function=name> arguments", None),
        (CHAT_TEMPLATE, None),
    ],
)
def test_the_format_is_the_one_that_the_template_teaches(template: str, expected: str | None) -> None:
    found: ToolFormat | None = format_taught_by(template)
    assert (found.name if found else None) == expected


def test_arguments_that_are_no_object_are_wrapped() -> None:
    assert arguments_object('{"a": 1}') == {"a": 1}
    assert arguments_object("[1]") == {"INVALID_JSON": "[1]"}
    assert arguments_object('{"a"') == {"INVALID_JSON": '{"a"'}
