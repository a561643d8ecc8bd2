from __future__ import annotations

import ipaddress

import pytest

from coordinator.own_addresses import addresses_of


@pytest.mark.parametrize(("host", "family"), [("0.0.0.0", 4), ("::", 6)])
def test_all_addresses_of_a_machine_are_those_that_others_know(host: str, family: int) -> None:
    found = [ipaddress.ip_address(address) for address in addresses_of(host)]
    assert all(address.version == family for address in found)
    assert not any(address.is_loopback or address.is_link_local or address.is_unspecified for address in found)
    assert len(set(found)) == len(found)


def test_an_address_is_itself_and_a_name_is_looked_up() -> None:
    assert addresses_of("10.1.2.3") == ("10.1.2.3",)
    assert addresses_of("127.0.0.1") == ("127.0.0.1",)
    assert set(addresses_of("localhost")) <= {"127.0.0.1", "::1"}
    assert addresses_of("no.such.host.invalid") == ()
