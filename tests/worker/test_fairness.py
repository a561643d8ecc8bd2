"""What a stream is slowed by beside another key: the factor that decision 15 states, on a modelled clock."""

from __future__ import annotations

import pytest

from tests.support.modelled_ring import BFLOAT16, FLOAT32, MANY, ONE, Ring

FACTOR = 4.0
"""At most so many times as long as alone a stream's token takes in the mean."""
LEFT_TO_OTHERS = 0.45
"""Of what they have without it, at least."""
LEARNED_S, MEASURED_S = 4.0, 8.0
PRECISIONS = {"float32": (FLOAT32, 0.020), "bfloat16": (BFLOAT16, 0.011)}
"""What batches take, and the seconds of one token: half of what it takes through both workers."""


def tokens_per_s(
    precision: str, seed: int, *, n_streams: int, n_prompts: int, has_one: bool = True
) -> tuple[float, float]:
    """Of the key with one stream, and of the other with so much; once it is known what batches take."""
    costs, token_s = PRECISIONS[precision]
    ring = Ring(costs, token_s=token_s, seed=seed)
    ring.begin_streams(MANY, n_streams)
    for _ in range(n_prompts):
        ring.begin_prompts(MANY)
    ring.run(LEARNED_S)
    ring.begin_streams(ONE, int(has_one))
    ring.run(LEARNED_S)
    before = ring.n_tokens.copy()
    ring.run(MEASURED_S)
    one, many = ((ring.n_tokens[tenant] - before[tenant]) / MEASURED_S for tenant in (ONE, MANY))
    return one, many


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("n_streams", "n_prompts"),
    [(50, 0), (200, 0), (0, 1), (0, 3)],
    ids=["50 streams", "200 streams", "prompts", "3 prompts at once"],
)
def test_another_key_slows_a_single_stream_by_four_times_at_most(
    precision: str, n_streams: int, n_prompts: int, seed: int
) -> None:
    alone_per_s, _ = tokens_per_s(precision, seed, n_streams=0, n_prompts=0)
    beside_per_s, others_per_s = tokens_per_s(precision, seed, n_streams=n_streams, n_prompts=n_prompts)
    _, without_per_s = tokens_per_s(precision, seed, n_streams=n_streams, n_prompts=n_prompts, has_one=False)
    assert alone_per_s <= FACTOR * beside_per_s
    assert others_per_s >= LEFT_TO_OTHERS * without_per_s
