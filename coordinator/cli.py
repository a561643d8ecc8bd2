"""The command `coord`: run a coordinator, and tell one what to do.

Errors are one line and an exit code (`protocol/errors.py`); a traceback means a defect of ours.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.text import Text

from coordinator import state_folder as names
from coordinator.cli_admin import key_commands, plan, status, worker_commands
from coordinator.cli_backup import backup, restore
from coordinator.cli_doctor import doctor
from coordinator.cli_model import model_commands
from coordinator.cli_output import console, notes, print_error
from coordinator.config import DEFAULT_PORT, CoordinatorConfig, default_state
from protocol.errors import EXIT_CANCELLED, EXIT_OK, BrigadeError
from protocol.logs import configure_logs
from protocol.version import program_version

app = typer.Typer(
    name="coord",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(status)
app.command()(plan)
app.command()(backup)
app.command()(restore)
app.command()(doctor)
app.add_typer(model_commands, name="model")
app.add_typer(key_commands, name="key")
app.add_typer(worker_commands, name="worker")


@app.callback(invoke_without_command=True)
def coord(
    show_version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
) -> None:
    """Brigade's coordinator: who is let in, who holds which blocks, which models are served."""
    if show_version:
        print(f"brigade {program_version()}")
        raise typer.Exit


@app.command()
def serve(
    *,
    listen: Annotated[
        str | None,
        typer.Option(
            help="Where to listen, host:port. Else BRIGADE_LISTEN, else 127.0.0.1:7400. Port 0: any free."
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder for everything that must be kept. Else BRIGADE_STATE, else the user's own."),
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(
            help="postgresql+asyncpg://user@host/database, or sqlite+aiosqlite:///FILE. Else BRIGADE_DATABASE_URL, "
            "else SQLite in the state folder."
        ),
    ] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(help="File with the join secret. Else BRIGADE_SECRET, else one made at the first start."),
    ] = None,
    secret: Annotated[str | None, typer.Option(help="The join secret itself; anybody can see it in `ps`.")] = None,
    public_url: Annotated[
        str | None,
        typer.Option(help="Where others reach this coordinator, https://host:port, if not where it listens."),
    ] = None,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="If another coordinator serves the database, stand by until it is gone, and then serve. It needs "
            "a copy of that one's state folder.",
        ),
    ] = False,
    placement: Annotated[
        str | None,
        typer.Option(
            help="What blocks are given out for: one-stream, many-streams, balance (both alike), or spread over "
            "all workers. Else BRIGADE_PLACEMENT, else balance."
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Run the coordinator until it is told to stop (Ctrl-C or SIGTERM; a second time: at once)."""
    configure_logs("coordinator", is_verbose=verbose)
    config = CoordinatorConfig.from_env(
        state=state,
        listen=listen,
        database_url=database_url,
        secret=secret,
        secret_file=secret_file,
        public_url=public_url,
        take_over=take_over,
        placement=placement,
    )
    asyncio.run(_serve(config))


async def _serve(config: CoordinatorConfig) -> None:
    from coordinator.app import RunningCoordinator, running

    def announce(coordinator: RunningCoordinator) -> None:
        if coordinator.is_first_start:
            console().print(Text(_welcome(config, coordinator.url)), soft_wrap=True)
        else:
            console().print(Text(f"Brigade coordinator at {coordinator.url}"), soft_wrap=True)
            if coordinator.authority.has_new_secret:
                path = coordinator.state_folder.path(names.JOIN_SECRET)
                console().print(
                    Text(f"No join secret was given or kept: a new one was made, {path}"), soft_wrap=True
                )

    stop = asyncio.Event()
    with _stop_signals(asyncio.get_running_loop(), stop):
        async with running(config) as coordinator:
            announce(coordinator)
            sys.stdout.flush()
            await stop.wait()


@contextmanager
def _stop_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` at the first SIGINT or SIGTERM; end the process at the second, which means "I won't wait"."""
    is_stopping = False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping:
            os._exit(EXIT_CANCELLED)
        is_stopping = True
        loop.call_soon_threadsafe(stop.set)

    previous: dict[signal.Signals, Any] = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _welcome(config: CoordinatorConfig, url: str) -> str:
    folder = config.state.expanduser().absolute()
    secret_file = "FILE_WITH_THE_SECRET" if config.secret else shlex.quote(str(folder / names.JOIN_SECRET))
    is_default = folder == default_state({}).absolute()  # another terminal may lack BRIGADE_STATE
    option = "" if is_default else f" --state {shlex.quote(str(folder))}"
    prefix = "" if is_default else f"BRIGADE_STATE={shlex.quote(str(folder))} "
    own = "the one that you gave" if config.secret else f"{folder / names.JOIN_SECRET} (keep it secret)"
    text = f"""\
Brigade coordinator at {url}

This is its first start. What it must keep is in {folder}, readable by this user only.
  join secret  {own}
  admin key    {folder / names.ADMIN_KEY}
  client key   {folder / names.CLIENT_KEY}

What to do next:
  1. Add a model: a folder of safetensors, a GGUF file, or a Hugging Face id
       coord model add NAME SOURCE{option}
  2. Start a worker, on this machine or (copy the secret's file there) on others
       worker join {url} --secret-file {secret_file}
  3. See how it goes, and generate
       coord status{option}
       {prefix}client generate "The capital of France is" --model NAME
"""
    if _is_loopback(config.listen_host):
        port = config.listen_port or DEFAULT_PORT
        text += f"""
It listens on loopback only: other machines can't reach it. To let them:
       coord serve --listen 0.0.0.0:{port} --public-url https://THIS-HOST:{port}{option}
"""
    return text


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


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
