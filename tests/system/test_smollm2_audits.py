"""Audits of a real model: what rounding does to a few positions of it is no alarm, and a cheat is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.audit_answers import answer
from coordinator.policy.audit_probe import Projection
from coordinator.policy.audit_rules import Comparison, Held, allowed_difference, compared
from protocol.ids import BlockRange
from tests.support.smollm2 import N_BLOCKS
from tests.support.whole_cluster import Packed
from worker.loaded_stage import load_stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
EXACT, ROUNDED = Held(weights="float32"), Held(weights="bfloat16")
STRAYING = ("s1 36", "s1 182", "s1 611")
"""Seeds of probes whose second token gets a massive activation, of quite another size in the two precisions."""

Answers = Callable[[Held, str], Projection]


@pytest.fixture(scope="module")
def answers(smollm2: Packed, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    blocks, manifest, store = BlockRange(0, N_BLOCKS), smollm2.model.manifest, smollm2.store
    folder: Path = tmp_path_factory.mktemp("config")
    for file in manifest.auxiliary:
        (folder / file.name).write_bytes(store.path(file.sha256).read_bytes())
    files = [store.path(file.sha256) for file in manifest.weight_files(blocks)]
    stages = {
        held: load_stage(folder, files, blocks, dtype=dtype, device=torch.device("cpu"))
        for held, dtype in ((EXACT, torch.float32), (ROUNDED, torch.bfloat16))
    }
    return lambda held, seed: answer(stages[held], held, seed)


def of_both(one: Projection, other: Projection) -> Comparison:
    allowed = allowed_difference(EXACT, ROUNDED, N_BLOCKS, is_dense=True)
    assert allowed is not None
    return compared(("one", one), ("other", other), allowed)


@pytest.mark.parametrize("seed", STRAYING)
def test_a_massive_activation_that_hangs_on_a_rounding_is_no_alarm(answers: Answers, seed: str) -> None:
    one, other = answers(EXACT, seed), answers(ROUNDED, seed)
    assert of_both(one, other).agrees, of_both(one, other).words()
    another = answers(ROUNDED, "s1 0")
    assert not of_both(one, another[:6] + other[6:]).agrees
