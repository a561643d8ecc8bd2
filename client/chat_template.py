"""Chat templates: a model's own Jinja program that lays a conversation out as one text.

A template is a stranger's program: it is bounded in size, and runs sandboxed, with little memory and until a
deadline, in a process of its own (`client.template_sandbox`). One operation of it can take hours, or all memory,
and would take this program along.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jinja2
from jinja2 import nodes

from client.template_sandbox import environment
from protocol.background import uninterrupted
from protocol.errors import InvalidRequestError, UntrustedFileError

Message: TypeAlias = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`; templates may read more keys."""

MAX_TEMPLATE_CHARACTERS = 256 * 1024
"""The longest template published has about 20,000 characters."""
RENDER_TIMEOUT_S = 10.0
_KEPT_VARIABLES = ("TZ", "LD_LIBRARY_PATH")
"""Of the environment: for `strftime_now`, and for interpreters whose library lies elsewhere. No key gets there."""


class ChatTemplate:
    """One model's template with its special tokens. Its process starts when it first renders, and goes with it."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise UntrustedFileError(
                f"the chat template has {len(source)} characters, over {MAX_TEMPLATE_CHARACTERS}"
            )
        try:
            parsed = environment().parse(source)
        except (jinja2.TemplateError, RecursionError) as exc:
            raise UntrustedFileError(f"the model's chat template is broken: {exc}") from exc
        self.source = source
        self.knows_tools = any(name.name == "tools" and name.ctx == "load" for name in parsed.find_all(nodes.Name))
        """Whether it reads which tools there are: what isn't in the text, the model can't know."""
        self._special_tokens = dict(special_tokens)
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = asyncio.Lock()

    async def rendered(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        documents: Sequence[Mapping[str, Any]] = (),
        timeout_s: float = RENDER_TIMEOUT_S,
    ) -> str:
        """The conversation as text, with the beginning of the model's answer.

        `tools` are `{"type": "function", "function": {"name", "description", "parameters"}}`, `documents` what some
        models take to answer from; a template that doesn't know them leaves them out.

        Raises:
            InvalidRequestError: the template refuses these messages (its own words are in the message).
            UntrustedFileError: it is broken, runs for too long or makes too much.
        """
        variables = self._special_tokens | {
            "messages": _plain(messages),
            "tools": _plain(tools) or None,
            "documents": _plain(documents) or None,
            "add_generation_prompt": True,
        }
        question = json.dumps({"source": self.source, "variables": variables}).encode() + b"\n"
        try:
            async with asyncio.timeout(timeout_s), self._turn:
                answer = await self._answer(question)
        except TimeoutError as exc:
            raise UntrustedFileError(
                f"the model's chat template ran for more than {timeout_s:g} s: use --raw, or another model"
            ) from exc
        return _text(answer)

    async def _answer(self, question: bytes) -> dict[str, str]:
        process = self._process
        if process is None:  # whoever leaves while a thread starts it leaves it to the next one
            process = await uninterrupted(asyncio.to_thread(self._start))
        answer: dict[str, str] = {}
        try:
            answer = await asyncio.to_thread(_asked, process, question)
        finally:
            if not answer:  # it is gone, or still at it; the thread that waits for it then ends too
                self._process = None
                process.kill()
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = process = _started()
        weakref.finalize(self, _end, process)
        return process


def _text(answer: Mapping[str, str]) -> str:
    """The text of an answer; what is wrong with the template otherwise."""
    match answer:
        case {"text": text}:
            return text
        case {"refused": why}:
            raise InvalidRequestError(f"the model's chat template can't do these messages: {why}")
        case {"broken": why}:
            raise UntrustedFileError(f"the model's chat template is broken: {why}")
        case {"too_much": what}:
            raise UntrustedFileError(
                f"the model's chat template takes too much {what}: use --raw, or another model"
            )
        case _:
            raise UntrustedFileError("the model's chat template ended its process: use --raw, or another model")


def _started() -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("template_sandbox.py")
    return subprocess.Popen(  # noqa: S603 - a fixed command
        [sys.executable, "-I", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
        start_new_session=True,  # Ctrl-C is the client's, which may go on after it
    )


def _asked(process: subprocess.Popen[bytes], question: bytes) -> dict[str, str]:
    """Its answer; nothing if it is gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(question)
        process.stdin.flush()
        answer: dict[str, str] = json.loads(process.stdout.readline() or b"{}")
    except (OSError, ValueError):
        return {}
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing of it behind."""
    process.kill()
    process.communicate()


def _plain(value: Any) -> Any:
    """A copy out of plain JSON types, so that a template gets no object with methods."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    return f"<{type(value).__name__}>"
