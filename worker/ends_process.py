"""The process that runs a model's ends for a private client: requests by standard input, answers by its output.

`python -m worker.ends_process`, started by the client (`client.private_ends`); it ends with its input, whatever it
is doing then. Nothing of a text is ever logged.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

import msgspec
import structlog
import torch

from protocol.ends_messages import (
    BeginText,
    Done,
    EndsFailed,
    EndsLoaded,
    FirstStates,
    ForgetText,
    LastDone,
    LoadEnds,
    Loading,
    RunFirst,
    RunLast,
    ToEnds,
)
from protocol.error_forms import error_fields
from protocol.errors import BrigadeError, InternalError, NotFoundError, OverloadedError
from protocol.frames import PREFIX_BYTES, decode_parts, encode_parts, frame_bytes
from protocol.logs import configure_logs
from protocol.manifest import decode_manifest
from protocol.tensors import bytes_from_tensor, tensor_from_bytes
from worker.ends import Ends, load_ends, ranges_of_ends
from worker.ends_files import end_files
from worker.heap import keep_few_kernels
from worker.step_inputs import ArrivedStep, payload_now

log = structlog.get_logger(__name__)

MAX_WAITING = 64
"""Requests: a client has one answered before it asks the next, but for those that free a text."""

Answer = tuple[msgspec.Struct, bytes | memoryview]


class EndsServer:
    """Answers requests one after the other. `say` tells how far loading is."""

    def __init__(self, say: Callable[[int, str], None], clock: Callable[[], float]) -> None:
        self._say = say
        self._clock = clock
        self._ends: Ends | None = None

    def answer(self, request: ToEnds, payload: memoryview) -> Answer:
        """What a request asks for, or why it can't be had."""
        try:
            return self._answer(request, payload)
        except BrigadeError as exc:
            error = exc
        except (MemoryError, torch.OutOfMemoryError):
            error = OverloadedError("this machine has too little memory for the model's ends")
        except Exception as exc:  # the request's outermost edge: the other texts go on
            log.exception("request_failed", kind=type(request).__name__)
            error = InternalError(f"the model's ends can't be run on this machine ({type(exc).__name__})")
        return EndsFailed(number=request.number, error=error.body()), b""

    def _answer(self, request: ToEnds, payload: memoryview) -> Answer:
        match request:
            case LoadEnds():
                self._ends = asyncio.run(self._loaded(request, bytes(payload)))
                return EndsLoaded(number=request.number, hidden_size=self._ends.hidden_size), b""
            case BeginText():
                prompt: list[int] = tensor_from_bytes(payload, "int32", (len(payload) // 4,)).tolist()
                self._ready().begin(
                    request.text_id, prompt, request.n_positions, request.sampling, request.n_prompt
                )
                return Done(number=request.number), b""
            case RunFirst():
                states = self._ready().run_first(request.text_id, request.position, request.n_tokens)
                precision, data = bytes_from_tensor(states)
                return FirstStates(number=request.number, precision=precision), data  # type: ignore[arg-type]
            case RunLast():
                return self._last_done(request, payload)
            case ForgetText():
                self._ready().forget(request.text_id)
                return Done(number=request.number), b""

    def _last_done(self, request: RunLast, payload: memoryview) -> Answer:
        states, step = payload_now(ArrivedStep(request.step, payload), is_head=False), request.step
        sampled = self._ready().run_last(request.text_id, step.position, states, wants_token=step.is_last)
        if sampled is None:
            return LastDone(number=request.number), b""
        choice = sampled.choice
        done = LastDone(
            number=request.number,
            token_id=choice.token_id,
            is_stop=sampled.is_stop,
            logprob=choice.logprob,
            top_logprobs=choice.top_logprobs,
            is_outgrown=sampled.is_outgrown,
        )
        if sampled.states is None:
            return done, b""
        precision, data = bytes_from_tensor(sampled.states)
        return msgspec.structs.replace(done, precision=precision), data

    async def _loaded(self, request: LoadEnds, manifest_bytes: bytes) -> Ends:
        manifest = decode_manifest(manifest_bytes, expected=request.revision)
        ranges = ranges_of_ends(manifest.n_blocks, request.n_blocks_each)
        say = partial(self._say, request.number)
        async with end_files(request, manifest, ranges, say, self._clock) as files:
            return load_ends(files.config_folder, files.first, files.last, ranges, request.precision)

    def _ready(self) -> Ends:
        if self._ends is None:
            raise NotFoundError("the model's ends are not loaded")
        return self._ends


def serve(requests: BinaryIO, answers: BinaryIO, clock: Callable[[], float]) -> None:
    """Answer until there are no more requests; then the process is at its end."""

    def write(message: msgspec.Struct, payload: bytes | memoryview = b"") -> None:
        answers.write(encode_parts(message, payload))
        answers.flush()

    server = EndsServer(lambda number, line: write(Loading(number=number, progress=line)), clock)
    frames: queue.Queue[bytes] = queue.Queue(MAX_WAITING)
    threading.Thread(target=_read_until_gone, args=(requests, frames), name="requests", daemon=True).start()
    while True:
        write(*server.answer(*decode_parts(frames.get(), ToEnds)))


def _read_until_gone(requests: BinaryIO, frames: queue.Queue[bytes]) -> None:
    """Read on while others are answered: a client that was killed is noticed though gigabytes are being fetched."""
    try:
        while len(prefix := requests.read(PREFIX_BYTES)) == PREFIX_BYTES:
            frames.put(prefix + requests.read(frame_bytes(prefix) - PREFIX_BYTES))
    except BrigadeError as exc:
        log.error("requests_broken", **error_fields(exc))  # noqa: TRY400 - a sentence says it
    finally:
        os._exit(0)  # nothing is left to be done in order: files that came in part go on from there


def main() -> None:
    """Serve standard input and output, which nothing else may write to."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    configure_logs("client-ends")
    keep_few_kernels()
    serve(sys.stdin.buffer, answers, time.time)  # noqa: TID251 - here the clock begins


if __name__ == "__main__":
    main()
