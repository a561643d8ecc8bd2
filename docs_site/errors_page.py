"""The reference of errors: every class of the one tree, with its code on the wire, HTTP status and exit code."""

from __future__ import annotations

from collections.abc import Iterator

from docs_site.tables import code, plain, table
from protocol import exit_codes
from protocol.errors import BrigadeError

INTRODUCTION = """\
# Errors and exit codes

A program that fails says why in a line on standard error, with what to do, and ends with an exit code. In HTTP
the same error is `{"error": {"code", "message", "retry_after_s"}}` with a status;
[the gateway](../gateway.md#errors) has it in the forms of OpenAI, Anthropic and Ollama. In Python it is a class
of `protocol.errors`. A traceback is a defect of Brigade.

[Finding out what is wrong](../how-to/troubleshooting.md) goes by what the programs print.
"""


def errors_page() -> str:
    """The page."""
    kinds = by_code()
    by_exit = {name: value for name, value in vars(exit_codes).items() if name.startswith("EXIT_")}
    rows = [
        (
            code(str(value)),
            ", ".join(code(kind.code) for kind in kinds if kind.exit_code == value) or _MEANINGS[name],
        )
        for name, value in sorted(by_exit.items(), key=lambda item: item[1])
    ]
    return "\n\n".join(
        (
            INTRODUCTION,
            "## Exit codes",
            table(("exit code", "errors"), rows),
            "`coord doctor` and `worker doctor` end with 1 if a check failed.",
            "## Errors by code",
            table(
                ("code", "status", "exit", "meaning", "class"),
                (
                    (code(kind.code), str(kind.status), str(kind.exit_code), _meaning(kind), code(kind.__name__))
                    for kind in kinds
                ),
            ),
        )
    )


_MEANINGS = {"EXIT_OK": "none"}


def by_code() -> list[type[BrigadeError]]:
    """The class that has each code; of several the one that is raised, not those that others are kinds of."""
    found: dict[str, type[BrigadeError]] = {}
    for kind in tree(BrigadeError):
        if kind.code not in found or not kind.__subclasses__():
            found[kind.code] = kind
    return list(found.values())


def tree(kind: type[BrigadeError]) -> Iterator[type[BrigadeError]]:
    """A class and all below it."""
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == BrigadeError.__module__:
            yield from tree(below)


def _meaning(kind: type[BrigadeError]) -> str:
    return plain((kind.__doc__ or "").split("\n\n")[0])
