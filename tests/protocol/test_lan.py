from __future__ import annotations

from typing import Any

import pytest
from zeroconf.asyncio import AsyncServiceInfo

from protocol.ids import CoordinatorId
from protocol.lan import MAX_ADDRESSES, SERVICE_TYPE, Announced, announced_from, service_info

HERE = Announced(
    coordinator_id=CoordinatorId("c-0011223344556677"),
    ca_fingerprint="ab" * 8,
    version="0.1.0",
    addresses=("192.168.1.10", "fd00::1"),
    port=7400,
)


def said(**changes: Any) -> AsyncServiceInfo:
    fields: dict[str, Any] = {
        "port": 7400,
        "parsed_addresses": ["192.168.1.10"],
        "properties": {"id": "c-1", "ca": "ab", "version": "1"},
    }
    return AsyncServiceInfo(SERVICE_TYPE, f"x.{SERVICE_TYPE}", server="x.local.", **(fields | changes))


def test_an_announcement_is_read_as_it_was_made() -> None:
    assert announced_from(service_info(HERE)) == HERE
    assert HERE.urls == ("https://192.168.1.10:7400", "https://[fd00::1]:7400")


@pytest.mark.parametrize(
    "changes",
    [
        {"properties": {}},
        {"properties": {"id": "c-1\x1b[2J", "ca": "ab", "version": "1"}},
        {"properties": {"id": "c-1", "ca": "ab", "version": "1" * 65}},
        {"properties": {b"id": b"\xff\xfe", b"ca": b"ab", b"version": b"1"}},
        {"port": 0},
        {"parsed_addresses": []},
        {"parsed_addresses": ["0.0.0.0", "224.0.0.1", "169.254.169.254", "fe80::1"]},
    ],
)
def test_what_makes_no_sense_is_passed_over(changes: dict[str, Any]) -> None:
    assert announced_from(said()) is not None
    assert announced_from(said(**changes)) is None


def test_no_more_addresses_are_tried_than_a_machine_has() -> None:
    found = announced_from(said(parsed_addresses=[f"10.0.0.{n}" for n in range(1, 60)]))
    assert found is not None
    assert len(found.addresses) == MAX_ADDRESSES
