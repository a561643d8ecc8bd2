"""The command `coord`: run a coordinator, and tell one what to do.

Errors are one line and an exit code (`protocol/errors.py`); a traceback means a defect of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from coordinator.cli_admin import plan, status
from coordinator.cli_assignment import assignment_commands
from coordinator.cli_audit import audit_log
from coordinator.cli_audits import audit, audits
from coordinator.cli_author import author_commands
from coordinator.cli_backup import backup, restore
from coordinator.cli_config import SECTION
from coordinator.cli_dashboard import dashboard
from coordinator.cli_doctor import doctor
from coordinator.cli_generation import generation_commands
from coordinator.cli_invite import invite_commands
from coordinator.cli_key import key_commands
from coordinator.cli_model import model_commands
from coordinator.cli_output import notes, print_error
from coordinator.cli_quota import quota_commands
from coordinator.cli_secret import secret_commands
from coordinator.cli_serve import serve
from coordinator.cli_settings import settings_commands
from coordinator.cli_trust import trust_commands
from coordinator.cli_worker import worker_commands
from protocol.configured_commands import take_config
from protocol.errors import BrigadeError
from protocol.exit_codes import EXIT_CANCELLED, EXIT_OK
from protocol.version import program_version

app = typer.Typer(
    name="coord",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(status)
app.command()(plan)
app.command("audit")(audit_log)
app.command()(backup)
app.command()(restore)
app.command()(doctor)
app.command()(dashboard)
app.add_typer(model_commands, name="model")
app.add_typer(author_commands, name="author")
app.add_typer(key_commands, name="key")
app.add_typer(quota_commands, name="quota")
app.add_typer(worker_commands, name="worker")
trust_commands.command("audit")(audit)
trust_commands.command("audits")(audits)
app.add_typer(trust_commands, name="trust")
app.add_typer(assignment_commands, name="assignment")
app.add_typer(secret_commands, name="secret")
app.add_typer(invite_commands, name="invite")
app.add_typer(settings_commands, name="settings")
app.add_typer(generation_commands, name="generation")
take_config(app, SECTION)


@app.callback(invoke_without_command=True)
def coord(
    show_version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
) -> None:
    """Brigade's coordinator: who is let in, who holds which blocks, which models are served."""
    if show_version:
        print(f"brigade {program_version()}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    sys.exit(_exit_code(lambda: app(args=None if arguments is None else list(arguments))))


def _exit_code(command: Callable[[], Any]) -> int:
    try:
        command()
    except SystemExit as exc:
        if exc.code == EXIT_CANCELLED:  # what typer makes of Ctrl-C
            notes().print("interrupted")
        raise
    except BrigadeError as exc:
        print_error(exc)
        return exc.exit_code
    except BaseExceptionGroup as group:
        error = _only_error(group)
        if error is None:
            raise
        print_error(error)
        return error.exit_code
    return EXIT_OK


def _only_error(group: BaseExceptionGroup[BaseException]) -> BrigadeError | None:
    """The error that a task group wrapped, if all in it are errors that we raised on purpose."""
    ours, others = group.split(BrigadeError)
    if ours is None or others is not None:
        return None
    found: BaseException = ours
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, BrigadeError)
    return found
