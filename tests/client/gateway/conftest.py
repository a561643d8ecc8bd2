from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.gateways import ServedGateway, gateway_cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedGateway]:
    """One cluster and one gateway for all tests of this folder that ask for nothing else."""
    async with gateway_cluster(tmp_path_factory.mktemp("gateway")) as running:
        yield running
