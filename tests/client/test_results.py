from __future__ import annotations

from client.results import Progress, TokenPiece


def test_speed_is_counted_after_the_first_token() -> None:
    progress = Progress(100.0)
    for number, now_s in enumerate((101.0, 101.5, 102.0)):
        progress.add(TokenPiece(token_id=number, text=str(number)), now_s)
    result = progress.generation()
    assert (result.ttft_s, result.tokens_per_s, result.text, result.token_ids) == (1.0, 2.0, "012", (0, 1, 2))


def test_why_no_token_comes_is_told_once_and_forgotten_with_the_next_token() -> None:
    notices: list[str] = []
    progress = Progress(100.0, notices.append)
    progress.fail_over("w-a went away")
    for _ in range(3):
        progress.tell("waiting: blocks 0:5 are loading")
    assert progress.waits_for == "waiting: blocks 0:5 are loading"
    progress.add(TokenPiece(token_id=1, text=""), 101.0)
    assert progress.waits_for == ""
    progress.fail_over("w-a went away")
    assert notices == ["w-a went away", "waiting: blocks 0:5 are loading", "w-a went away"]
    assert progress.generation().failovers == 2


def test_one_token_has_no_speed_and_none_has_no_time() -> None:
    progress = Progress(100.0)
    assert (progress.generation().ttft_s, progress.generation().finish_reason) == (0.0, "cancelled")
    progress.add(TokenPiece(token_id=1, text=""), 103.0)
    assert (progress.generation().ttft_s, progress.generation().tokens_per_s) == (3.0, 0.0)
