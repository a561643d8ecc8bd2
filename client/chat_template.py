"""Chat templates: a model's own Jinja program that lays a conversation out as one text.

Rendered as transformers does (same environment, filters and variables), so that prompts are the same to the
character. A template is a stranger's program: sandboxed, bounded in size, output and time.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any, NoReturn, TypeAlias

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from protocol.errors import InvalidRequestError, UntrustedFileError

Message: TypeAlias = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`; templates may read more keys."""

MAX_TEMPLATE_CHARACTERS = 256 * 1024
"""The longest template published has about 20,000 characters."""
MAX_OUTPUT_CHARACTERS = 64 * 2**20
RENDER_TIMEOUT_S = 10.0


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks the model's words for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's way of naming them

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_unchanged"), [], [], body).set_lineno(line)

    def _unchanged(self, caller: Any) -> Any:
        return caller()


class ChatTemplate:
    """One model's template, compiled, with its special tokens."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise UntrustedFileError(
                f"the chat template has {len(source)} characters, over {MAX_TEMPLATE_CHARACTERS}"
            )
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as exc:
            raise UntrustedFileError(f"the model's chat template is broken: {exc}") from exc
        self._special_tokens = dict(special_tokens)

    async def rendered(self, messages: Sequence[Message], *, timeout_s: float = RENDER_TIMEOUT_S) -> str:
        """The conversation as text, with the beginning of the model's answer.

        Raises:
            InvalidRequestError: the template refuses these messages (its own words are in the message).
            UntrustedFileError: it runs for too long or makes too much.
        """
        done: Future[str] = Future()
        given_up = threading.Event()
        # A daemon thread of its own: a template that never ends must not keep the program from ending.
        threading.Thread(
            target=self._render, args=(messages, done, given_up), name="chat-template", daemon=True
        ).start()
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.wrap_future(done)
        except TimeoutError as exc:
            raise UntrustedFileError(
                f"the model's chat template ran for more than {timeout_s:g} s: use --raw, or another model"
            ) from exc
        finally:
            given_up.set()

    def _render(self, messages: Sequence[Message], done: Future[str], given_up: threading.Event) -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(self._text(messages, given_up))
        except BaseException as exc:  # noqa: BLE001 - a thread's outermost edge; it is raised where it's awaited
            done.set_exception(exc)

    def _text(self, messages: Sequence[Message], given_up: threading.Event) -> str:
        parts: list[str] = []
        n_characters = 0
        variables = self._special_tokens | {
            "messages": _plain(messages),
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            for part in self._template.generate(variables):
                n_characters += len(part)
                if n_characters > MAX_OUTPUT_CHARACTERS or given_up.is_set():
                    raise UntrustedFileError(
                        f"the model's chat template made over {MAX_OUTPUT_CHARACTERS} characters, or too slowly"
                    )
                parts.append(part)
        except jinja2.TemplateError as exc:
            raise InvalidRequestError(f"the model's chat template refuses these messages: {exc}") from exc
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as exc:
            raise InvalidRequestError(
                f"the model's chat template can't do these messages ({type(exc).__name__}): {exc}"
            ) from exc
        return "".join(parts)


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates say it by position
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    # jinja2's own filter escapes HTML, which would change prompts
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _plain(value: Any) -> Any:
    """A copy out of plain JSON types, so that a template gets no object with methods."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    return f"<{type(value).__name__}>"
