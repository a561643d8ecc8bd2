"""The programs' event loop: what it does with errors that nobody handles."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from protocol.event_loops import event_loop, signals_handled


def test_an_error_that_nobody_handled_is_one_line_of_the_log() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)

    with capture_logs() as lines, asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(main())
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("loop_error", "error")
    assert isinstance(line["exc_info"], ZeroDivisionError)


@pytest.mark.parametrize("closes", [True, False])
def test_a_connection_that_ends_twice_is_no_error(closes: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        transport, protocol = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
        if closes:
            transport.abort()
        error = RuntimeError(f"unable to perform operation on {transport!r}; the handler is closed")
        loop.call_exception_handler(
            {
                "message": "Fatal error on SSL protocol",
                "exception": error,
                "transport": transport,
                "protocol": protocol,
            }
        )
        transport.abort()
        server.close()
        await server.wait_closed()

    with capture_logs() as lines, asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(main())
    assert [line["log_level"] for line in lines] == ["debug" if closes else "error"]


def test_nor_is_one_whose_transport_is_forgotten_already() -> None:
    async def main() -> None:
        error = RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
        context = {"message": "Fatal error on SSL protocol", "exception": error, "transport": None}
        asyncio.get_running_loop().call_exception_handler(context)

    with capture_logs() as lines, asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(main())
    assert [line["log_level"] for line in lines] == ["debug"]


class LoopWithoutSignals(asyncio.SelectorEventLoop):
    """As Windows' own loop is."""

    def add_signal_handler(self, sig: int, callback: object, *args: object) -> None:
        raise NotImplementedError

    def remove_signal_handler(self, sig: int) -> bool:
        raise NotImplementedError


@pytest.mark.parametrize("make", [LoopWithoutSignals, event_loop])
def test_signals_reach_the_loop_on_every_system_and_go_back_to_who_had_them(
    make: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        came = asyncio.Event()
        with signals_handled(came.set, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(signal.SIGTERM)
            async with asyncio.timeout(5):
                await came.wait()

    before = signal.getsignal(signal.SIGTERM)
    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(main())
    assert signal.getsignal(signal.SIGTERM) == before
