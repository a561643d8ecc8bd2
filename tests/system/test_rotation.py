"""Secrets rotate while a cluster runs: workers take up the new ones by themselves, and generations go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from protocol.secret_rest import RotatedSecret, RotateSecretRequest, SecretsInfo
from tests.support.coordinators import join_secret_of
from tests.support.waiting import eventually_answered
from tests.support.whole_cluster import packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
AT_ONCE = RotateSecretRequest(grace_s=0)
PROMPT = [5, 9, 30, 4]


async def test_a_worker_joins_anew_with_the_secret_that_its_file_holds_by_then(tmp_path: Path) -> None:
    packed, _ = await asyncio.to_thread(packed_tiny, tmp_path / "models", "llama")
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        file = tmp_path / "secret"
        file.write_text(join_secret_of(cluster.coordinator))
        await cluster.join("w", secret_file=file)
        await cluster.until_ready()
        before = await cluster.ids("tiny", PROMPT, max_tokens=4)
        rotated = await cluster.admin("POST", "/admin/v1/secrets/join/rotate", AT_ONCE)
        file.write_text(rotated.read(RotatedSecret).secret)
        answer = await cluster.admin("POST", "/admin/v1/secrets/signing-key/rotate", AT_ONCE)
        assert len(answer.read(SecretsInfo).signing_keys) == 1

        async def has_shown_the_new_one() -> bool:
            (join,) = (await cluster.admin("GET", "/admin/v1/secrets")).read(SecretsInfo).joins
            return join.is_current

        await eventually_answered(has_shown_the_new_one)
        await cluster.until_ready()
        assert await cluster.ids("tiny", PROMPT, max_tokens=4) == before
