"""Every example runs to its end against a cluster, as a person would start it."""

from __future__ import annotations

import asyncio
import runpy
import sys
from pathlib import Path

import pytest

from tests.support.coordinators import key_of
from tests.support.gateways import gateway_cluster
from tests.support.waiting import eventually

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.timeout(120)


async def test_all_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other: where they look for the cluster, and print, is the whole process's."""
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert [name for name in names if f"[`{name}`]" not in (EXAMPLES / "README.md").read_text()] == []
    async with gateway_cluster(tmp_path) as served:
        monkeypatch.setenv("BRIGADE_URL", served.cluster.coordinator.url)
        monkeypatch.setenv("BRIGADE_API_KEY", key_of(served.cluster.coordinator, "client"))
        monkeypatch.setenv("BRIGADE_CACHE", str(tmp_path / "cache"))
        for name in names:
            gateway = [f"{served.gateway.url}/v1"] if name == "openai_client.py" else []
            monkeypatch.setattr(sys, "argv", [name, "tiny", *gateway])
            await asyncio.to_thread(runpy.run_path, str(EXAMPLES / name), run_name="__main__")
            assert capsys.readouterr().out.strip(), name
        await eventually(lambda: served.sessions_on_workers() == 0)
