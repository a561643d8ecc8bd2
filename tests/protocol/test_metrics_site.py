from __future__ import annotations

import aiohttp
import pytest
from prometheus_client import Counter

from protocol.errors import ConfigError, PortInUseError
from protocol.metrics import new_registry
from protocol.metrics_address import metrics_address, metrics_notice
from protocol.metrics_site import metrics_served
from protocol.version import program_version


async def test_metrics_are_read_on_loopback_by_no_other_name_and_nothing_else_is() -> None:
    registry = new_registry("program")
    Counter("things", "Things.", registry=registry).inc(3)
    async with (
        metrics_served(registry, ("127.0.0.1", 0)) as url,
        aiohttp.ClientSession() as http,
    ):
        assert url is not None
        async with http.get(url) as answer:
            text = await answer.text()
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "things_total 3.0\n" in text
        assert "_created" not in text
        assert f'brigade_build_info{{program="program",version="{program_version()}"}} 1.0' in text
        for version in ("1.0.0", "x", "1..0"):
            open_metrics = {"Accept": f"application/openmetrics-text; version={version}, */*;q=0.1"}
            async with http.get(url, headers=open_metrics) as answer:
                assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0;")
                assert (await answer.text()).endswith("# EOF\n")
        async with http.get(url, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 403
        async with http.get(url.replace("/metrics", "/")) as answer:
            assert answer.status == 404


async def test_an_address_that_cannot_be_used_is_told_by_its_option() -> None:
    for wrong in ("127.0.0.1:http", "a b:1", "127.0.0.1:99999"):
        with pytest.raises(ConfigError, match="--metrics-listen"):
            metrics_address(wrong)
    assert metrics_address("127.0.0.1") == ("127.0.0.1", 9464)
    assert metrics_address(None) is None
    async with metrics_served(new_registry("one"), ("127.0.0.1", 0)) as url:
        assert url is not None
        port = int(url.split(":")[2].split("/")[0])
        with pytest.raises(PortInUseError, match="--metrics-listen"):
            async with metrics_served(new_registry("another"), ("127.0.0.1", port)):
                pass


def test_people_are_warned_where_others_reach_it() -> None:
    assert metrics_notice(None, None) is None
    assert "warning" not in (metrics_notice("http://127.0.0.1:9464/metrics", ("127.0.0.1", 9464)) or "")
    assert "without a key" in (metrics_notice("http://0.0.0.0:9464/metrics", ("0.0.0.0", 9464)) or "")
