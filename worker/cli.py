"""The command `worker`: one line for each change on standard output, errors as one line and an exit code."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from protocol.errors import EXIT_CANCELLED, EXIT_OK, BrigadeError, ConfigError
from protocol.ids import block_range_from_text, checked_model_name
from protocol.logs import configure_logs
from protocol.version import program_version
from worker.cli_doctor import doctor
from worker.config import WorkerConfig, listed_urls, listen_address, size_from_text

_DEVICES = ("auto", "cpu", "cuda", "mps")
_PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8", "int4")
_WIRES = ("auto", "exact", "int8")

app = typer.Typer(
    name="worker",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
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
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def join(
    urls: Annotated[
        list[str],
        typer.Argument(
            metavar="URL...",
            help="The coordinator, https://HOST:PORT. Several addresses of it, with spaces or commas in between, "
            "are tried in order: at the start, and whenever it can't be reached at one of them.",
        ),
    ],
    *,
    secret: Annotated[
        str | None,
        typer.Option(
            help="The join secret itself. Anybody here can see it in `ps`: better set BRIGADE_SECRET, or "
            "use --secret-file.",
            show_default=False,
        ),
    ] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the join secret. Without it (and --secret): BRIGADE_SECRET.", show_default=False
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Folder for this worker's key and its cache of model files; each worker needs its own. "
            "Else BRIGADE_WORKER_STATE, else the user's own.",
            show_default=False,
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            help="Where clients and other workers connect to: HOST or HOST:PORT. Else the address that faces the "
            "coordinator (loopback if that is on this machine), any free port.",
            show_default=False,
        ),
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(help="What others use instead to reach it: https://HOST:PORT.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps. auto: cuda, else mps, else cpu.")] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="auto, float32, bfloat16, float16, int8 or int4. auto: bfloat16, or float32 if that is clearly "
            "faster here. int8 and int4 (CPU only) hold weights in fewer bits, and compute in bfloat16."
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads for the model. Else torch's choice.", show_default=False)
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Most memory for weights and key-value caches together, such as 8GiB. Else what is free, less a "
            "reserve.",
            show_default=False,
        ),
    ] = None,
    kv_memory: Annotated[
        str | None,
        typer.Option(
            help="Of that, for key-value caches. Else four fifths of what the weights leave.", show_default=False
        ),
    ] = None,
    cache_size: Annotated[
        str | None,
        typer.Option(
            help="Most disk space for model files, such as 100GB; the least recently used go first. Else what "
            "the disk has.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Hold blocks of this model only.", show_default=False)] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Hold exactly these blocks: start:end, counted from 0, end not included. Else the coordinator "
            "chooses.",
            show_default=False,
        ),
    ] = None,
    wire: Annotated[
        str,
        typer.Option(
            help="How activations go to the next worker. exact: as computed. int8: in half the bytes or less, and "
            "not quite the same. auto: exact, but prompts in bfloat16 and float16 as int8 over links that are "
            "measured to be slow."
        ),
    ] = "auto",
    chunk_tokens: Annotated[int, typer.Option(help="Most prompt tokens that are run at a time.")] = 128,
    join_timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds to wait for a coordinator that can't be reached, then end with code 3. Else for ever.",
            min=0.0,
            show_default=False,
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more, on standard error.")] = False,
) -> None:
    """Join the coordinator at URL, and serve blocks of its models until stopped.

    Ctrl-C or SIGTERM: others who can load its blocks first (10 s at most), running generations end (30 s), then the
    worker leaves. A second time: at once.
    """
    if secret is not None:
        print("warning: --secret shows in `ps`; better set BRIGADE_SECRET or use --secret-file", file=sys.stderr)
    host, port = listen_address(listen) if listen is not None else (None, 0)
    config = WorkerConfig.from_env(
        secret=secret,
        secret_file=secret_file,
        state=state,
        coordinator_urls=listed_urls(urls),
        listen_host=host,
        listen_port=port,
        advertise_url=advertise,
        device=_one_of(device, _DEVICES, "--device"),
        precision=_one_of(precision, _PRECISIONS, "--precision"),
        n_threads=threads,
        memory_bytes=_size(memory, "--memory"),
        kv_memory_bytes=_size(kv_memory, "--kv-memory"),
        cache_bytes=_size(cache_size, "--cache-size"),
        pinned_model=checked_model_name(model) if model is not None else None,
        pinned_blocks=block_range_from_text(blocks) if blocks is not None else None,
        chunk_tokens=chunk_tokens,
        wire=_one_of(wire, _WIRES, "--wire"),
        join_timeout_s=join_timeout,
    )
    configure_logs("worker", is_verbose=verbose)
    with asyncio.Runner(loop_factory=_event_loop()) as runner:
        runner.run(_join(config))


def _event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where there is one: it wakes for the engine's results sooner (docs/decisions/0006); else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _join(config: WorkerConfig) -> None:
    from worker.app import running  # torch takes a second to import: not for --help

    stop = _Stop(asyncio.current_task())
    with _signals(asyncio.get_running_loop(), stop.on_signal):
        async with running(config, tell=_say) as worker:
            stop.joined(worker.departure.ask, worker.departure.hurry)
            _say(f"joined; {worker.holdings.reason}")
            await worker.departure.asked.wait()
            _say(f"leaving: {worker.departure.reason}")
    _say("left")


class _Stop:
    """What a signal does: before the worker has joined, give up; then drain; then, the second time, don't wait."""

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self._task = task
        self._ask: Callable[[str], None] | None = None
        self._hurry: Callable[[], None] | None = None
        self._n_signals = 0

    def joined(self, ask: Callable[[str], None], hurry: Callable[[], None]) -> None:
        self._ask, self._hurry = ask, hurry

    def on_signal(self) -> None:
        self._n_signals += 1
        if self._ask is None or self._hurry is None:
            if self._task is not None:
                self._task.cancel()
        elif self._n_signals == 1:
            self._ask("the worker was stopped")
        else:
            self._hurry()


@contextmanager
def _signals(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _say(line: str) -> None:
    """A line for people. What came from elsewhere can't move a terminal's cursor."""
    with suppress(BrokenPipeError):  # nobody reads it any more: no reason to stop serving
        print("".join(character if character.isprintable() else " " for character in line), flush=True)


def _size(text: str | None, option: str) -> int | None:
    return None if text is None else size_from_text(text, option)


def _one_of(text: str, choices: Sequence[str], option: str) -> str:
    if text not in choices:
        raise ConfigError(f"{option} {text!r}: one of {', '.join(choices)}")
    return text


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
        print(f"error: {exc.message}", file=sys.stderr)
        return exc.exit_code
    return EXIT_OK
