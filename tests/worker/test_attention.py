from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from protocol.errors import InternalError
from protocol.ids import BlockRange
from tests.support.tiny_checkpoint import TinyCheckpoint
from worker.attention import BatchCache, attending_apart, implementation_of
from worker.batching_trial import settle_batching
from worker.cut import configs_of


@pytest.mark.parametrize(("name", "expected"), [("llama", "brigade_sdpa"), ("gemma2", "eager")])
def test_a_model_attends_in_its_own_way_again_after_a_batch(
    checkpoint: Callable[[str], TinyCheckpoint], name: str, expected: str
) -> None:
    stage = checkpoint(name).load(BlockRange(1, 3))
    configs = configs_of(stage._model)
    settle_batching(stage)
    assert implementation_of(configs[0]) == expected
    batch = BatchCache([stage.new_cache(4)], [1], implementation=expected, joins_keys=False)
    with suppress(InternalError), attending_apart(batch, configs):
        assert implementation_of(configs[0]) == "brigade_sessions"
        raise InternalError("a forward failed")
    assert implementation_of(configs[0]) == expected
