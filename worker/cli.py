"""The command `worker`: one line for each change on standard output, errors as one line and an exit code."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer

from protocol.author_keys import author_key_argument
from protocol.configured_commands import take_config, taken_from_file
from protocol.errors import BrigadeError
from protocol.exit_codes import EXIT_CANCELLED, EXIT_OK
from protocol.metrics_address import metrics_address
from protocol.version import program_version
from worker import cli_options as options
from worker.cli_config import SECTION
from worker.cli_doctor import doctor
from worker.config import WorkerConfig, listed_urls, listen_address
from worker.heap import keep_few_arenas, keep_few_kernels
from worker.told import printable, say

app = typer.Typer(
    name="worker",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Brigade's worker: holds a range of a model's blocks on this machine and runs them.",
)
app.command()(doctor)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"worker {program_version()}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def join(
    context: typer.Context,
    urls: options.Urls = None,
    *,
    secret: options.Secret = None,
    secret_file: options.SecretFile = None,
    invite: options.Invite = None,
    invite_file: options.InviteFile = None,
    state: options.State = None,
    listen: options.Listen = None,
    advertise: options.Advertise = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
    memory: options.Memory = None,
    kv_memory: options.KvMemory = None,
    kv_precision: options.KvPrecision = "auto",
    cache_size: options.CacheSize = None,
    model: options.Model = None,
    blocks: options.Blocks = None,
    wire: options.Wire = "auto",
    chunk_tokens: options.ChunkTokens = None,
    draft_model: options.DraftModel = None,
    compile_steps: options.Compile = False,
    trust_author: options.TrustAuthor = None,
    join_timeout: options.JoinTimeout = None,
    metrics_listen: options.MetricsListen = None,
    verbose: options.Verbose = False,
) -> None:
    """Join the coordinator at URL (or the one on the local network), and serve blocks of its models until stopped.

    Ctrl-C or SIGTERM: others who can load its blocks first (10 s at most), running generations end (30 s), then the
    worker leaves. A second time: at once.
    """
    _warn_of_arguments({"secret": secret, "invite": invite}, taken_from_file(context))
    host, port = listen_address(listen) if listen is not None else (None, 0)
    settings: dict[str, Any] = (
        {"coordinator_urls": listed_urls(urls or ()), "join_timeout_s": join_timeout}
        | {"listen_host": host, "listen_port": port, "advertise_url": advertise}
        | {"device": device, "precision": precision, "wire": wire, "chunk_tokens": chunk_tokens}
        | {"n_threads": threads, "memory_bytes": memory, "kv_memory_bytes": kv_memory, "cache_bytes": cache_size}
        | {"kv_precision": kv_precision, "metrics_listen": metrics_address(metrics_listen)}
        | {"pinned_model": model, "pinned_blocks": blocks, "draft_model": draft_model}
        | {"compiles": compile_steps}
        | {"trusted_authors": tuple(author_key_argument(key, "--trust-author") for key in trust_author or ())}
    )
    config = WorkerConfig.from_env(
        secret=secret, secret_file=secret_file, invite=invite, invite_file=invite_file, state=state, **settings
    )
    _serve(config, is_verbose=verbose)


take_config(app, SECTION)


def _serve(config: WorkerConfig, *, is_verbose: bool) -> None:
    # these take long to import: not for --help, and not before the settings are known to be good
    from protocol.event_loops import event_loop
    from protocol.logs import configure_logs
    from worker.early_enrolment import early_start
    from worker.goodbye import say_not_coming
    from worker.identity import opened_state

    configure_logs("worker", is_verbose=is_verbose)
    keep_few_arenas()
    keep_few_kernels()
    say("starting: torch is loaded first, which takes some seconds")
    with opened_state(config.state), _stopped_as_by_ctrl_c(), asyncio.Runner(loop_factory=event_loop) as runner:
        start = runner.run(early_start(config, say))
        try:
            from worker.serving import serve_until_stopped  # torch
        except BaseException as exc:
            runner.run(say_not_coming(start.credentials, exc))
            raise
        runner.run(serve_until_stopped(start.config, start.credentials, has_state=True))


@contextmanager
def _stopped_as_by_ctrl_c() -> Iterator[None]:
    """Have SIGTERM do what SIGINT does, until the worker itself takes both: what was begun is ended."""
    previous = signal.signal(signal.SIGTERM, _as_ctrl_c)
    try:
        yield
    except KeyboardInterrupt as exc:  # with which typer ends the program without a word
        raise asyncio.CancelledError from exc
    finally:
        signal.signal(signal.SIGTERM, previous)


def _as_ctrl_c(_number: int, _frame: FrameType | None) -> None:
    """Do what SIGINT does, or would: scripts have what they start in the background ignore that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def _warn_of_arguments(secrets: Mapping[str, str | None], from_file: Container[str]) -> None:
    """Say which secrets were given as arguments: anybody on this machine sees those."""
    for name, value in secrets.items():
        if value is not None and name not in from_file:
            print(
                f"warning: --{name} shows in `ps`; better set BRIGADE_{name.upper()} or use --{name}-file",
                file=sys.stderr,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    sys.exit(_exit_code(lambda: app(args=None if arguments is None else list(arguments))))


def _exit_code(command: Callable[[], Any]) -> int:
    try:
        command()
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("stopped before the worker had joined", file=sys.stderr)
        return EXIT_CANCELLED
    except BrigadeError as exc:
        print(f"error: {printable(exc.message)}", file=sys.stderr)
        return exc.exit_code
    return EXIT_OK
