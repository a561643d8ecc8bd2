"""Render chat templates in a process of its own: run as a script, which gets little memory and no environment.

A line of JSON in, `{"source": ..., "variables": {...}}`, is answered by a line with one of `text`, `broken` (the
template can't be used by anybody), `refused` (it can't do these messages) and `too_much` (of output, or of memory).
Rendered as transformers does (same environment, filters and variables). Imports nothing of Brigade's.
"""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

if sys.platform != "win32":
    import resource

MAX_OUTPUT_CHARACTERS = 64 * 2**20
MAX_MEMORY_BYTES = 2 * 2**30
"""Address space: of it 0.1 GB are the interpreter's, and a text is there several times."""
_MAX_REASON = 500


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks the model's words for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's way of naming them

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_unchanged"), [], [], body).set_lineno(line)

    def _unchanged(self, caller: Any) -> Any:
        return caller()


def environment() -> jinja2.Environment:
    """What templates run in. Compiling one computes its constants: outside of the process, only `parse` is safe."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def answer(source: str, variables: dict[str, Any]) -> dict[str, str]:
    """The template's text, or what is wrong."""
    try:
        template = environment().from_string(source)
    except (jinja2.TemplateError, RecursionError) as exc:
        return {"broken": str(exc)[:_MAX_REASON]}
    except (MemoryError, OverflowError):
        return {"too_much": "memory"}
    try:
        return _text(template, variables)
    except jinja2.TemplateError as exc:
        return {"refused": str(exc)[:_MAX_REASON]}
    except (MemoryError, OverflowError):
        return {"too_much": "memory"}
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as exc:
        return {"refused": f"{type(exc).__name__}: {exc}"[:_MAX_REASON]}


def _text(template: jinja2.Template, variables: dict[str, Any]) -> dict[str, str]:
    parts: list[str] = []
    n_characters = 0
    for part in template.generate(variables):
        n_characters += len(part)
        if n_characters > MAX_OUTPUT_CHARACTERS:
            return {"too_much": f"text, over {MAX_OUTPUT_CHARACTERS} characters"}
        parts.append(part)
    return {"text": "".join(parts)}


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


def main() -> None:
    """Answer lines until there are no more."""
    _limit_memory()
    for line in sys.stdin.buffer:
        said = answer(**json.loads(line))
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


def _limit_memory() -> None:
    """Where the system can: macOS knows no limit of address space, Windows none at all; the deadline is left."""
    if sys.platform != "win32":
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
