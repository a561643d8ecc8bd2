from __future__ import annotations

from protocol.ids import SessionId
from protocol.messages import Step
from worker.hop_times import N_KEPT, HopTimes, is_one_round


def test_quantiles_are_of_the_latest_steps() -> None:
    times = HopTimes()
    assert times.quantiles(0.5, 0.99) == (0.0, 0.0)
    for i in range(10 + N_KEPT):
        times.add(float(i))
    assert times.quantiles(0.5, 0.99) == (10 + N_KEPT // 2 - 1, 10 + 506.0)


def test_a_prompt_is_no_round() -> None:
    def step(position: int, n_tokens: int, drafts: tuple[int, ...] = ()) -> Step:
        return Step(
            session_id=SessionId("s-1"),
            position=position,
            n_tokens=n_tokens,
            dtype="float32",
            is_last=True,
            drafts=drafts,
        )

    assert is_one_round(step(5, 1))
    assert is_one_round(step(5, 3, (7, 8)))
    assert not is_one_round(step(5, 3))
    assert not is_one_round(step(0, 1))
