"""Whether the container's program answers: its port takes connections, and the gateway says that it takes requests.

Which program it is, and which port it has, is in the command that the container was started with.
"""

from __future__ import annotations

import http.client
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

TIMEOUT_S = 4.0
PORTS = {"coord": 7400, "worker": 7500, "client": 8000}


def port_of(command: Sequence[str]) -> tuple[str, int]:
    """The program of a command such as `coord serve --listen 0.0.0.0:7400`, and the port that it listens on."""
    program = next(name for word in command if (name := Path(word).name) in PORTS)
    listen = ""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word == "--listen":
            listen = following
        elif word.startswith("--listen="):
            listen = word.partition("=")[2]
    port = listen.rpartition(":")[2]
    return program, int(port) if port.isdigit() else PORTS[program]


def main(command_file: str = "/proc/1/cmdline") -> int:
    """0 if it answers, else 1."""
    command = Path(command_file).read_bytes().decode().split("\0")
    program, port = port_of(command)
    try:
        if program != "client" or "--tls-cert" in command:
            socket.create_connection(("127.0.0.1", port), TIMEOUT_S).close()
            return 0
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        connection.request("GET", "/health")
        return 0 if connection.getresponse().status == http.client.OK else 1
    except (OSError, http.client.HTTPException) as exc:
        print(f"{program} doesn't answer on port {port}: {exc}", file=sys.stderr)  # noqa: T201 - docker shows it
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
