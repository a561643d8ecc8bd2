"""A process that runs a model's ends for a private client, and the pipes by which it is asked."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, TypeVar

import msgspec

from client.attempt import ids_payload
from protocol.background import uninterrupted
from protocol.ends_messages import (
    BeginText,
    Done,
    EndsFailed,
    FirstStates,
    ForgetText,
    FromEnds,
    LastDone,
    Loading,
    RunFirst,
    RunLast,
    ToEnds,
)
from protocol.error_forms import error_from_body
from protocol.errors import ConfigError, InternalError
from protocol.frames import PREFIX_BYTES, decode_parts, encode_parts, frame_bytes
from protocol.messages import Precision, SamplingParams, Step

STOP_S = 5.0
"""How long a process may take to end once nobody asks it any more."""
NEEDED = ("torch", "transformers", "safetensors")
"""What `brigade[worker]` adds and the process can't do without."""
_KEPT_VARIABLES = (
    *("PATH", "HOME", "USERPROFILE", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "LANG", "TZ"),
    *("VIRTUAL_ENV", "LD_LIBRARY_PATH"),
)
_KEPT_PREFIXES = (
    "LC_",
    "CUDA_",
    "NVIDIA_",
    "HIP_",
    "ROCR_",
    "OMP_",
    "KMP_",
    "MKL_",
    "TORCH",
    "PYTORCH_",
    "MALLOC_",
)
"""Of the environment: what torch and the system go by. No API key gets there; what it needs of one it is told."""
_MAX_SAID_BYTES = 2000
"""Of what a process that broke said last."""

T = TypeVar("T")


@dataclass(slots=True)
class EndsProcess:
    """A process and its pipes. One request at a time; before the next the answer is taken that a caller left."""

    process: asyncio.subprocess.Process
    said: IO[bytes]
    """What it writes beside its answers: why it broke, if it does."""
    hidden_size: int = 0
    used_s: float = 0.0
    """When it was last asked, on the loop's clock."""
    _texts: set[int] = field(default_factory=set)
    """That callers have, or are about to begin."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _numbers: Any = field(default_factory=lambda: itertools.count(1))
    _text_ids: Any = field(default_factory=lambda: itertools.count(1))
    _prefix: bytes = b""
    """Of an answer whose rest is still to come."""
    _unanswered: set[int] = field(default_factory=set)
    """Requests that it was sent."""

    @property
    def is_running(self) -> bool:
        """Whether it can be asked."""
        return self.process.returncode is None

    @property
    def has_texts(self) -> bool:
        """Whether anybody generates with it."""
        return bool(self._texts)

    def new_text_id(self) -> int:
        """An id for a text. Known before the text is begun, so that it can be freed whatever becomes of that."""
        text_id: int = next(self._text_ids)
        self._texts.add(text_id)
        return text_id

    async def begin(
        self, text_id: int, token_ids: Sequence[int], n_positions: int, sampling: SamplingParams, n_prompt: int
    ) -> None:
        """Begin a text with these tokens, of which the first `n_prompt` are its prompt."""
        request = BeginText(
            number=0, text_id=text_id, n_positions=n_positions, sampling=sampling, n_prompt=n_prompt
        )
        await self.ask(request, Done, ids_payload(token_ids))

    async def run_first(self, text_id: int, position: int, n_tokens: int) -> tuple[Precision, memoryview]:
        """The hidden states of a part of the prompt, for the workers."""
        request = RunFirst(number=0, text_id=text_id, position=position, n_tokens=n_tokens)
        answer, states = await self.ask(request, FirstStates)
        return answer.precision, states

    async def run_last(self, text_id: int, step: Step, states: bytes | memoryview) -> tuple[LastDone, memoryview]:
        """Take what the workers gave back; the token after it if `step.is_last`, and that one's states."""
        return await self.ask(RunLast(number=0, text_id=text_id, step=step), LastDone, states)

    def forget(self, text_id: int) -> None:
        """Free a text, when the process comes to it. Waits for nothing; so no caller leaves before it is asked."""
        self._texts.discard(text_id)
        if self.is_running:
            self._write(ForgetText(number=0, text_id=text_id))

    async def ask(
        self,
        request: ToEnds,
        kind: type[T],
        payload: bytes | memoryview = b"",
        tell: Callable[[str], None] = lambda _line: None,
    ) -> tuple[T, memoryview]:
        """Ask, under a number of its own; the answer and its payload. The caller has the deadline.

        Raises:
            BrigadeError: what the process says is wrong; InternalError if it is gone.
        """
        async with self._turn:
            assert self.process.stdin is not None
            try:
                while self._unanswered:  # it reads nothing while it is waiting for somebody to read
                    await self._next_answer()
                number = self._write(request, payload)
                await self.process.stdin.drain()
                answer, answered = await self._answer_to(number, tell)
            except (ConnectionError, asyncio.IncompleteReadError) as exc:
                raise InternalError(await self._broken()) from exc
        if isinstance(answer, EndsFailed):
            raise error_from_body(answer.error)
        if not isinstance(answer, kind):
            raise InternalError(f"the model's ends answered with {type(answer).__name__}: install them anew")
        return answer, answered

    async def stop(self) -> None:
        """End the process, whoever is cancelled meanwhile; it frees everything. Repeating it does no harm."""
        await uninterrupted(self._stopped())

    async def _stopped(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(STOP_S):
                await self.process.wait()
        except TimeoutError:
            self.kill()
            await self.process.wait()
        self.said.close()

    def kill(self) -> None:
        """End it whatever it does."""
        with suppress(ProcessLookupError):
            self.process.kill()

    def _write(self, request: ToEnds, payload: bytes | memoryview = b"") -> int:
        """Put a request out under a number of its own; that number."""
        assert self.process.stdin is not None
        self.used_s = asyncio.get_running_loop().time()
        number: int = next(self._numbers)
        self.process.stdin.write(encode_parts(msgspec.structs.replace(request, number=number), payload))
        self._unanswered.add(number)
        return number

    async def _answer_to(self, number: int, tell: Callable[[str], None]) -> tuple[FromEnds, memoryview]:
        while True:
            message, payload = await self._next_answer()
            if message.number != number:
                continue
            if not isinstance(message, Loading):
                return message, payload
            tell(message.progress)

    async def _next_answer(self) -> tuple[FromEnds, memoryview]:
        """The next frame; who is cancelled in the middle of one loses nothing of it."""
        assert self.process.stdout is not None
        if not self._prefix:
            self._prefix = await self.process.stdout.readexactly(PREFIX_BYTES)
        rest = await self.process.stdout.readexactly(frame_bytes(self._prefix) - PREFIX_BYTES)
        frame, self._prefix = self._prefix + rest, b""
        message, payload = decode_parts(frame, FromEnds)
        if not isinstance(message, Loading):
            self._unanswered.discard(message.number)
        return message, payload

    async def _broken(self) -> str:
        code = await self.process.wait()
        self.said.seek(0, 2)
        self.said.seek(max(0, self.said.tell() - _MAX_SAID_BYTES))
        lines = self.said.read().decode("utf-8", errors="replace").strip().splitlines()
        why = lines[-1] if lines else "it said nothing; too little memory is the likeliest cause"
        return f"the process that runs the model's ends on this machine ended (exit code {code}): {why}"


async def started_ends() -> EndsProcess:
    """A process that has nothing loaded yet.

    Raises:
        ConfigError: what it needs isn't installed, or it can't be started.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"a private generation runs the model's ends on this machine, and {', '.join(missing)} isn't installed "
            "here: pip install '.[worker]' in Brigade's folder"
        )
    said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # nothing of the folder that the client happens to be started in
            "-m",
            "worker.ends_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=said,
            env=kept_environment(os.environ),
            start_new_session=True,  # Ctrl-C is the client's, who ends its generations in order
        )
    except BaseException as exc:
        said.close()
        if not isinstance(exc, OSError):
            raise  # asyncio has ended what it had begun
        raise ConfigError(f"no process can be started for the model's ends: {exc.strerror or exc}") from exc
    return EndsProcess(process, said)


def kept_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the client's environment the process gets."""
    return {
        name: value
        for name, value in environment.items()
        if name in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES)
    }
