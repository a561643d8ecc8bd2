"""Each constraint is compiled in a process of its own first: what some make llguidance do there is no limit for.

Deep chains of rules overflow the stack, which ends the whole process, and conjunctions of regular expressions are
compiled for hours and into gigabytes. `python -m worker.grammar_trial` is that process: it ends with its input.
"""

from __future__ import annotations

import hashlib
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from protocol.errors import InvalidRequestError, OverloadedError
from protocol.messages import Constraint
from worker.grammar import TokenizerSource, Vocabulary, unusable

if sys.platform != "win32":
    import resource

TRIAL_S = 5.0
"""Compiling within llguidance's own limits takes one at most; none but hostile ones comes near."""
START_S = 60.0
"""The process starts and reads a tokenizer in a second or two."""
MEMORY_BYTES = 3 * 2**30
"""Of addresses, most of which nothing is behind."""
STACK_BYTES = 4 * 2**20
"""Half of what a worker's threads have: what gets through the trial gets through there."""
MAX_REMEMBERED = 1024
_TOO_MUCH = (
    f"compiling it takes longer than {TRIAL_S:g} s, more memory than {MEMORY_BYTES // 2**30} GiB, or nests too "
    "deeply: simplify it"
)


class TrialRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A constraint to be compiled."""

    folder: str
    vocab_size: int
    constraint: Constraint


class GrammarTrial:
    """Asks the process, one constraint at a time; started when needed, and anew after one that ended it. Blocks."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end_process: Callable[[], object] = _nothing
        self._known: OrderedDict[bytes, str] = OrderedDict()
        """What was tried, and why it was refused; empty if it wasn't. By hashes, the oldest first."""

    def check(self, source: TokenizerSource, constraint: Constraint) -> None:
        """Return if the constraint can be compiled here without harm.

        Raises:
            InvalidRequestError: it can't, or not at all.
            OverloadedError: the process can't be started.
        """
        request = TrialRequest(folder=str(source.folder), vocab_size=source.vocab_size, constraint=constraint)
        line = msgspec.json.encode(request) + b"\n"
        key = hashlib.sha256(line).digest()
        refused = self._known.get(key)  # what is known needn't wait for what is being tried
        if refused is None:
            with self._turn:
                refused = self._known[key] = self._tried(line, constraint)
                if len(self._known) > MAX_REMEMBERED:
                    self._known.popitem(last=False)
        if refused:
            raise InvalidRequestError(refused)

    def _tried(self, line: bytes, constraint: Constraint) -> str:
        process = self._running()
        with suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.write(line)
            process.stdin.flush()
        if not _next_line(process, START_S):
            raise OverloadedError("the process that tries constraints couldn't be started: try again later")
        answer = _next_line(process, TRIAL_S)
        if not answer:
            return unusable(constraint, _TOO_MUCH).message
        return msgspec.json.decode(answer, type=str)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end_process()
            self._process = _started()
            self._end_process = weakref.finalize(self, _end, self._process)
        return self._process


def _started() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "worker.grammar_trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what a library says when it breaks may quote the constraint
            env={name: value for name, value in os.environ.items() if not name.startswith("BRIGADE_")}
            | {"OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is the worker's
        )
    except OSError as exc:
        raise OverloadedError(f"no process can be started to try the constraint: {exc.strerror or exc}") from exc


def _next_line(process: subprocess.Popen[bytes], within_s: float) -> bytes:
    """The next line; nothing if the process ended, or had to be ended for it took too long."""
    assert process.stdout is not None
    timer = threading.Timer(within_s, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line.endswith(b"\n"):
        _end(process)
        return b""
    return line


def _nothing() -> None:
    """There is no process yet."""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()


def main() -> None:
    """Answer requests until there are no more, whatever is being compiled then."""
    _limit_memory()
    threading.stack_size(STACK_BYTES)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_answer_forever, args=(requests,), name="trials", daemon=True).start()
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


def _answer_forever(requests: queue.SimpleQueue[bytes]) -> None:
    """Two lines for each: one when compiling begins, and why it is refused.

    What the vocabulary can't be read for, who asks was told already: it reads the same first.
    """
    vocabularies: dict[tuple[str, int], Vocabulary] = {}
    while True:
        request = msgspec.json.decode(requests.get(), type=TrialRequest)
        refused = ""
        try:
            key = (request.folder, request.vocab_size)
            if key not in vocabularies:
                vocabularies.clear()  # one is enough: a worker mostly serves one model
                vocabularies[key] = Vocabulary(
                    TokenizerSource(folder=Path(request.folder), vocab_size=request.vocab_size)
                )
            _say(b"\n")
            vocabularies[key].matcher(request.constraint).compute_bitmask()
        except InvalidRequestError as exc:
            refused = exc.message
        _say(msgspec.json.encode(refused) + b"\n")


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _limit_memory() -> None:
    """Where the system can; no core is dumped, for a constraint is the business of who wrote it."""
    if sys.platform != "win32":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    main()
