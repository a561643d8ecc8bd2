from __future__ import annotations

import asyncio
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from client.chat_template import MAX_TEMPLATE_CHARACTERS, ChatTemplate, Message
from protocol.errors import InvalidRequestError, UntrustedFileError
from tests.support.open_files import WatchedThreads, nothing_left_open
from tests.support.tiny_tokenizer import CHAT_TEMPLATE

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT: list[Message] = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "Hi\n there "},
    {
        "role": "assistant",
        "content": "Hello \N{ROCKET}",
        "tool_calls": [{"name": "f", "arguments": {"b": 1, "a": "<>"}}],
    },
    {"role": "user", "content": [{"type": "text", "text": "more"}]},
]
TEMPLATES = [
    CHAT_TEMPLATE.replace("message['content']", "message['content']|string"),
    "{{ bos_token }}\n{% for m in messages %}\n    {% if m.role == 'system' %}\n  S:{{ m.content | trim }}\n"
    "    {% else %}\n{{ m.role | upper }} {{ m.content }}{{ eos_token }}\n    {% endif %}\n{% endfor %}\n",
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
    "{{ messages[2].tool_calls | tojson(indent=2) }}{{ messages | tojson(sort_keys=true) }}",
    "{% set ns = namespace(found=false) %}{% for m in messages if m.role == 'user' %}{% set ns.found = true %}"
    "{% endfor %}{{ ns.found }}{{ dict(a=1).items() | list }}",
    "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}",
    "{{ tools is none }}{{ documents is none }}{{ undefined_thing }}{% if not tools %}no tools{% endif %}",
    "{% if add_generation_prompt %}{{ strftime_now('%Y') | length }}{% endif %}",
    "{% macro show(m) %}[{{ m.role }}]{% endmacro %}{% for m in messages %}{{ show(m) }}{% endfor %}",
]


@pytest.mark.parametrize("source", TEMPLATES)
async def test_renders_as_transformers_does(source: str) -> None:
    transformers_own: Any = render_jinja_template
    expected, _ = transformers_own(
        conversations=[[dict(m) for m in CHAT]], chat_template=source, add_generation_prompt=True, **SPECIAL
    )
    assert [await ChatTemplate(source, SPECIAL).rendered(CHAT)] == expected


@pytest.mark.parametrize("source", ["{{ tools | tojson }}{{ documents[0].text }}", "{% if tools %}yes{% endif %}"])
async def test_tools_and_documents_are_given_as_transformers_gives_them(source: str) -> None:
    tools: list[dict[str, Any]] = [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    ]
    documents = [{"title": "t", "text": "<x>"}]
    transformers_own: Any = render_jinja_template
    expected, _ = transformers_own(
        conversations=[[dict(m) for m in CHAT]], chat_template=source, tools=tools, documents=documents
    )
    template = ChatTemplate(source, SPECIAL)
    assert template.knows_tools
    assert [await template.rendered(CHAT, tools=tools, documents=documents)] == expected


def test_a_template_that_reads_no_tools_is_known_by_it() -> None:
    assert not ChatTemplate("{% set tools = 1 %}{{ messages[0].tools }}", {}).knows_tools


async def test_what_a_template_refuses_is_the_callers_fault() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        await template.rendered(CHAT)


@pytest.mark.parametrize("source", ["{{ 1 / 0 }}", "{{ messages[99].content }}", "{{ 'a' + 1 }}"])
async def test_a_template_that_fails_is_an_error_with_its_reason(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="chat template"):
        await ChatTemplate(source, {}).rendered(CHAT)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
    ],
)
async def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="chat template"):
        await ChatTemplate(source, {}).rendered(CHAT)


@pytest.mark.parametrize("source", ["{% for", "{% unknown %}", "x" * (MAX_TEMPLATE_CHARACTERS + 1)])
def test_a_broken_or_huge_template_is_refused_at_once(source: str) -> None:
    with pytest.raises(UntrustedFileError):
        ChatTemplate(source, {})


async def test_a_template_that_never_ends_is_given_up() -> None:
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}"
    with pytest.raises(UntrustedFileError, match=r"0\.2 s"):
        await ChatTemplate(loop, {}).rendered(CHAT, timeout_s=0.2)


async def test_a_template_sees_only_plain_data() -> None:
    class Dangerous(str):
        def delete(self) -> str:
            return "deleted"

    messages: list[dict[str, Any]] = [
        {"role": "user", "content": Dangerous("x"), "n": 1, "none": None, "o": object()}
    ]
    with pytest.raises(InvalidRequestError):
        await ChatTemplate("{{ messages[0].content.delete() }}", {}).rendered(messages)
    assert await ChatTemplate("{{ messages[0].o }}{{ messages[0].n }}", {}).rendered(messages) == "<object>1"


async def test_who_leaves_while_the_process_is_started_leaves_it_to_the_next_one() -> None:
    threads = WatchedThreads(1)
    asyncio.get_running_loop().set_default_executor(threads)
    with nothing_left_open():
        template = ChatTemplate("{{ messages[0].content }}", {})
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(template.rendered([{"role": "user", "content": "first"}]))
            await threads.given[0].wait()
            task.cancel()
            threads.may_begin.set()
        assert task.cancelled()
        assert await template.rendered([{"role": "user", "content": "second"}]) == "second"
        assert len(threads.jobs) == 2, "one started the process, one asked it"
        threads.jobs.clear()
        del template, task
