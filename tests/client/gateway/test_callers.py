from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.config import ClientConfig
from client.gateway.callers import caller_key
from client.gateway.config import GatewayConfig
from protocol.api_key import new_api_key
from protocol.errors import UnauthenticatedError

OWN, OTHER, STRANGE = (new_api_key("client", fingerprint * 64) for fingerprint in ("a", "a", "b"))


def config(**changes: Any) -> GatewayConfig:
    own = ClientConfig(url="https://127.0.0.1:1", api_key=OWN, cache=Path("unused"))
    return GatewayConfig(cluster=own, **changes)


def test_a_key_of_the_cluster_counts_and_one_of_another_is_refused_here() -> None:
    assert caller_key({"Authorization": f"Bearer {OTHER.text()}"}, config()) == OTHER
    with pytest.raises(UnauthenticatedError, match="of another cluster") as raised:
        caller_key({"x-api-key": STRANGE.text()}, config(share_key=True))
    assert STRANGE.secret not in raised.value.message


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "X-Real-IP"])
def test_what_a_proxy_passes_on_isnt_of_this_machine(header: str) -> None:
    assert caller_key({}, config()) == OWN
    with pytest.raises(UnauthenticatedError, match=header):
        caller_key({header: "203.0.113.7"}, config())
    assert caller_key({header: "203.0.113.7"}, config(share_key=True)) == OWN
    assert caller_key({header: "203.0.113.7", "Authorization": f"Bearer {OTHER.text()}"}, config()) == OTHER
