"""The `client` command: text goes to standard output, everything about it to standard error.

Exit codes are those of `protocol/errors.py`; an error is one line, never a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from client import cli_bench, cli_chat, cli_embed, cli_generate, cli_serve
from client.cli_config import CLIENT, GATEWAY
from client.command import Json, for_cluster_waited_for, run, tell, write
from client.config import ClientConfig
from client.output import models_line, models_table, printable
from protocol.configured_commands import take_config
from protocol.errors import BrigadeError
from protocol.exit_codes import EXIT_CANCELLED, EXIT_INTERNAL, EXIT_OK, EXIT_STORAGE, EXIT_USAGE
from protocol.version import program_version

EXIT_BROKEN_PIPE = 141

app = typer.Typer(
    name="client",
    help="Use a Brigade cluster's models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(cli_generate.generate)
app.command()(cli_bench.bench)
app.command()(cli_chat.chat)
app.command()(cli_serve.serve)
app.command()(cli_embed.embed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    try:
        code = app(args=argv, prog_name="client", standalone_mode=False)
    except BrigadeError as exc:
        return _failed(exc.message, exc.exit_code)
    except TyperException as exc:
        return _failed(_usage_message(exc), EXIT_USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_CANCELLED
    except BrokenPipeError:
        # whoever read has gone; what is still buffered must not be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as exc:
        return _failed(f"the answer can't be written: {exc.strerror or exc}", EXIT_STORAGE)
    except Exception as exc:  # noqa: BLE001 - the program's outermost edge
        return _failed(f"a defect in Brigade: {type(exc).__name__}: {exc}", EXIT_INTERNAL)
    return code if isinstance(code, int) else EXIT_OK


@app.callback(invoke_without_command=True)
def client(
    show_version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
) -> None:
    """Use a Brigade cluster's models."""
    if show_version:
        print(f"brigade {program_version()}")
        raise typer.Exit


@app.command()
@for_cluster_waited_for
def models(*, is_json: Json = False, config: ClientConfig) -> int:
    """List the cluster's models and whether they can be used now."""
    return run(_models(config, is_json=is_json))


take_config(app, CLIENT, GATEWAY)


async def _models(config: ClientConfig, *, is_json: bool) -> int:
    from client.api import Client  # takes long, and is not for --help

    async with Client(config=config, on_notice=tell) as client:
        found = await client.models()
    await write("\n".join([models_line(found)] if is_json else models_table(found)) + "\n")
    return EXIT_OK


def _failed(message: str, exit_code: int) -> int:
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return exit_code


def _usage_message(exc: TyperException) -> str:
    named = getattr(exc, "format_message", None)  # which names the option too
    return str(named() if named is not None else exc) or "no command: see --help"
