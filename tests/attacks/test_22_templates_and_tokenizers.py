"""Class 22. Defences: templates in a sandbox, in a process with a deadline and little memory; blame for panics."""

from __future__ import annotations

import asyncio
import json
import os
import time

import psutil
import pytest

from client.chat_template import MAX_TEMPLATE_CHARACTERS, ChatTemplate
from client.model_files import ModelFiles
from client.stopping import checked_stops
from client.tokenizer import ModelTokenizer
from protocol.errors import BrigadeError, InvalidRequestError, TooLargeError, UntrustedFileError
from protocol.ids import Revision
from tests.support.scripted_cluster import scripted_manifest

CHAT = [{"role": "user", "content": "hi"}]
WITHIN_S = 1.5
SLOWEST_TICK_S = 0.3
"""How long the event loop of a busy machine may take for a round on average; some bombs are over sooner."""
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(namespace) }}",
    "{{ self._TemplateReference__context }}",
    "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
)
BOMBS = {
    "never ends": "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
    "one operation that takes long": "{{ (messages|length + 8) ** (10 ** 7) }}",
    "the same, as a constant": "{{ 9 ** (10 ** 7) }}",
    "more memory than there is": "{{ 'x' * 10 ** 11 }}",
    "doubling": "{% set n = namespace(x='aaaa') %}{% for i in range(27) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
    "{{ n.x }}",
    "padding": "{{ '%0999999999999d' % 3 }}{{ 'a'|center(10 ** 11) }}",
    "more text than fits": "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "recursion": "{% macro a(n) %}{{ a(n) }}{% endmacro %}{{ a(1) }}",
}


async def outcome(source: str, timeout_s: float = WITHIN_S) -> str:
    try:
        return await ChatTemplate(source, {}).rendered(CHAT, timeout_s=timeout_s)
    except BrigadeError as exc:
        return type(exc).__name__


@pytest.mark.parametrize("source", ESCAPES)
async def test_a_template_reaches_nothing_but_the_messages(source: str) -> None:
    """Fails if templates run outside of Jinja's immutable sandbox: what it hides is undefined, or refused."""
    assert await outcome(source, 10.0) in ("InvalidRequestError", "UntrustedFileError", "")


async def test_a_template_s_process_knows_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if who breaks out of the sandbox finds a key in the environment, or memory without a limit."""
    monkeypatch.setenv("BRIGADE_API_KEY", "secret-4711")
    template = ChatTemplate("{{ messages[0].content }}", {})
    assert await template.rendered(CHAT) == "hi"
    assert template._process is not None
    process = psutil.Process(template._process.pid)
    assert process.pid != os.getpid()
    assert not [name for name in process.environ() if "BRIGADE" in name]
    assert 0 < process.rlimit(psutil.RLIMIT_AS)[0] <= 4 * 2**30  # -1 is no limit


@pytest.mark.parametrize("kind", BOMBS)
async def test_a_bomb_ends_with_its_process_and_not_with_ours(kind: str) -> None:
    """Fails if a template runs in this process: one operation of it holds the interpreter, or takes all memory."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    began_s, began_bytes = time.monotonic(), psutil.Process().memory_info().rss
    async with asyncio.TaskGroup() as tasks:
        ticking = tasks.create_task(tick())
        said = await outcome(BOMBS[kind])
        ticking.cancel()
    took_s = time.monotonic() - began_s
    assert said in ("UntrustedFileError", "InvalidRequestError"), kind
    assert took_s < 10 * WITHIN_S
    assert ticks > took_s / SLOWEST_TICK_S, "the event loop stood still"
    assert psutil.Process().memory_info().rss - began_bytes < 500 * 2**20


async def test_after_a_bomb_other_messages_are_laid_out() -> None:
    """Fails if what was killed isn't begun anew: then one message in a chat ends all chats."""
    source = "{% if messages[0].content == 'bomb' %}{{ (messages|length + 8) ** (10 ** 7) }}{% endif %}fine"
    template = ChatTemplate(source, {})
    with pytest.raises(UntrustedFileError, match="use --raw"):
        await template.rendered([{"role": "user", "content": "bomb"}], timeout_s=1.0)
    assert await template.rendered(CHAT) == "fine"


def test_a_template_that_is_too_long_isnt_compiled() -> None:
    """Fails if the size of what came with a model isn't looked at."""
    with pytest.raises(UntrustedFileError, match="characters"):
        ChatTemplate("{{ 1 }}" * MAX_TEMPLATE_CHARACTERS, {})


# ------------------------------------------------------------------ tokenizers


def tokenizer(**changes: object) -> ModelTokenizer:
    """One of two letters, with these parts of `tokenizer.json` instead."""
    parts = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    }
    files = {"tokenizer.json": json.dumps(parts | changes).encode()}
    manifest = scripted_manifest(files, 64)
    return ModelTokenizer(ModelFiles(manifest=manifest, contents=files, revision=Revision("a" * 64)))


async def test_a_regular_expression_that_backtracks_is_the_file_s_fault() -> None:
    """Fails if the library's panic, which is no Exception, ends the program instead of the request."""
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    bomb = tokenizer(pre_tokenizer=split)
    assert await bomb.encoded_text("aa") == [0, 0]
    with pytest.raises(UntrustedFileError, match="tokenizer"):
        await asyncio.wait_for(bomb.encoded_text("a" * 200 + "c"), 10)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]},
        {"type": "Unigram", "unk_id": 7, "vocab": []},
        {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "?"},
        {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"] * 3]},
        {"type": "__import__('os')"},
        [[[[[[]]]]]],
    ],
)
async def test_a_tokenizer_that_makes_no_sense_is_refused_as_a_file(model: object) -> None:
    """Fails if a stranger's file raises what nobody expects."""
    with pytest.raises((UntrustedFileError, InvalidRequestError)):
        await tokenizer(model=model).encoded_text("ab")


async def test_text_that_is_too_long_isnt_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a prompt of any length goes into the tokenizer."""
    monkeypatch.setattr("client.token_ids.MAX_PROMPT_CHARACTERS", 10)
    with pytest.raises(TooLargeError):
        await tokenizer().encoded_text("a" * 11)


def test_stop_strings_are_few_and_short() -> None:
    """Fails if a caller can have every token compared with any number of strings of any length."""
    assert checked_stops(["a"] * 10_000) == ("a",)
    for stops in ([f"{i}" for i in range(10_000)], ["a" * 10**7], [""]):
        with pytest.raises(InvalidRequestError):
            checked_stops(stops)
