"""A process that has imported what the three programs need, and forks one of them whenever it is asked to.

A worker spends seconds of its start on nothing but imports. A fork of somebody who has done them takes milliseconds
and is as real a process, with a pid, signals, memory and files of its own. How the programs start by themselves is
tested elsewhere.

It is asked through a Unix socket, on which it says first that it can be: a message is a JSON object with the
program, its arguments, environment and folder, and carries three file descriptors; the answer is the pid. The
forked process isn't this one's child: it is left to the nearest ancestor that takes orphans in, who is the one that
asked.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from importlib import import_module
from typing import Any, NoReturn

import torch

from protocol.background import freeze_heap
from tests.support.forked_program import READY
from tests.support.measured_once import measure_once
from worker import machine

MAX_MESSAGE_BYTES = 2**18
PROGRAMS = {"coord": "coordinator.cli", "worker": "worker.cli", "client": "client.cli"}
IMPORTED = (
    *("coordinator.serving", "coordinator.doctor", "coordinator.state_copy", "coordinator.packing.pack"),
    *("worker.serving", "client.api", "client.gateway.app", "client.terminal.chat"),
    *("protocol.event_loops", "protocol.logs", "protocol.pinned_http"),
    *("transformers.models.llama.modeling_llama", "transformers.modeling_gguf_pytorch_utils"),
)


def main() -> None:
    """Serve until the other end of the socket, whose number is the only argument, is closed."""
    for module in (*PROGRAMS.values(), *IMPORTED):
        import_module(module)
    measure()
    freeze_heap()  # so that a collection in a fork doesn't copy all of this
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        asked.send(READY)
        while True:
            message, descriptors, _, _ = socket.recv_fds(asked, MAX_MESSAGE_BYTES, 3)
            if not message:
                return
            asked.send(str(_forked(json.loads(message), descriptors, asked)).encode())
            for descriptor in descriptors:
                os.close(descriptor)


def measure() -> None:
    """Measure the device as every worker does; on one thread, since others wouldn't be there in a fork."""
    torch.set_num_threads(1)
    measure_once()
    machine.measure_device(torch.device("cpu"))


def _forked(request: dict[str, Any], descriptors: list[int], asked: socket.socket) -> int:
    """The pid of a grandchild: its parent ends at once, so that it is an orphan when this returns."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild == 0:
            os.close(reading)
            os.close(writing)
            asked.close()
            _become(request, descriptors)
        os.write(writing, str(grandchild).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as told:
        return int(told.read())


def _become(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = [request["program"], *request["arguments"]]
    sys.exit(import_module(PROGRAMS[request["program"]]).main())


if __name__ == "__main__":
    main()
