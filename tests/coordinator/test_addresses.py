"""Host headers that are ours, and addresses that workers may advertise."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.addresses import check_advertised_url, check_host, known_names
from coordinator.config import CoordinatorConfig
from protocol.errors import ForbiddenError, InvalidRequestError

NAMES = known_names(CoordinatorConfig(state=Path("/nowhere"), public_url="https://Brigade.Example:7400"))


@pytest.mark.parametrize(
    "header",
    ["localhost:7400", "127.0.0.1:7400", "[::1]:7400", "10.0.0.5", "brigade.example", "BRIGADE.example.:7400",
     "coordinator.brigade.internal"],
)  # fmt: skip
def test_addresses_and_own_names_are_let_through(header: str) -> None:
    check_host(header, NAMES)


@pytest.mark.parametrize("header", ["", "evil.example", "evil.example:7400", "localhost.evil.example", "[", "a b"])
def test_other_names_are_refused(header: str) -> None:
    with pytest.raises(ForbiddenError, match="--public-url"):
        check_host(header, NAMES)


@pytest.mark.parametrize("url", ["https://10.0.0.7:7411", "https://[2001:db8::7]:7411", "https://10.0.0.7:7411/"])
async def test_addresses_that_others_reach_are_taken(url: str) -> None:
    await check_advertised_url(url, "10.0.0.7")


async def test_loopback_is_taken_from_loopback_only() -> None:
    await check_advertised_url("https://127.0.0.1:7411", "127.0.0.1")
    await check_advertised_url("https://localhost:7411", "::1")
    for url in ("https://127.0.0.1:7411", "https://localhost:7411", "https://[::ffff:127.0.0.1]:1"):
        with pytest.raises(InvalidRequestError, match="loopback"):
            await check_advertised_url(url, "10.0.0.7")


@pytest.mark.parametrize(
    "url",
    [
        "https://169.254.169.254:80",
        "https://[::ffff:169.254.169.254]:80",
        "https://[fe80::1]:80",
        "https://0.0.0.0:80",
        "https://[ff02::1]:80",
        "https://255.255.255.255:80",
        "https://2852039166:80",
        "https://0xa9fea9fe:80",
    ],
)
async def test_addresses_that_no_worker_has_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        await check_advertised_url(url, "127.0.0.1")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "10.0.0.7:80",
        "http://10.0.0.7:80",
        "https://10.0.0.7",
        "https://10.0.0.7:80/path",
        "https://u:p@10.0.0.7:80",
        "https://10.0.0.7:80?a=b",
        "https://10.0.0.7:80#f",
        "https://10.0.0.7:99999",
        "https://" + "a" * 300 + ":1",
        "https://no-such-host.invalid:80",
    ],
)
async def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        await check_advertised_url(url, "127.0.0.1")
