from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from client.cli_serve import notices
from client.config import ClientConfig
from client.gateway.config import GatewayConfig
from demo.local_cluster import LocalCluster
from protocol.api_key import new_api_key
from protocol.exit_codes import EXIT_CANCELLED


@pytest.mark.slow
def test_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    async def status(url: str) -> int:
        async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/models") as answer:
            return answer.status

    with LocalCluster(tmp_path) as cluster:
        cluster.start_coordinator()
        url = cluster.start_gateway()
        assert asyncio.run(status(url)) == 200
        assert cluster.stop("gateway", signal.SIGTERM) in (0, EXIT_CANCELLED)
        assert "as only this machine reaches the gateway" in cluster.log("gateway")


def test_says_whose_quotas_are_used_and_who_can_reach_it(tmp_path: Path) -> None:
    key = new_api_key("client", "0" * 64)
    alone = GatewayConfig(cluster=ClientConfig(url="https://a:1", api_key=key, cache=tmp_path))
    assert notices(alone) == [
        f"requests without a key count as key {key.key_id}, as only this machine reaches the gateway"
    ]
    said = " ".join(notices(replace(alone, allow_origins=("*",))))
    assert f"any page that a browser here opens uses the cluster at key {key.key_id}'s expense" in said
    for everybody in (replace(alone, listen_host="0.0.0.0"), replace(alone, listen_host="0.0.0.0", share_key=True)):
        said = " ".join(notices(everybody))
        assert "every address of this machine" in said
        assert "unencrypted" in said
        assert ("at this key's expense" in said) == everybody.share_key
        assert key.secret not in said
