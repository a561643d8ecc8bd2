"""What a generation gives: pieces while it runs, a summary at any time. Plain values; nothing here waits."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ids import WorkerId
from protocol.messages import FinishReason, Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPiece:
    """One token and the text that can be shown since it came; often empty, and never a broken character."""

    token_id: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStage:
    """A worker and the blocks [start, end) that it ran."""

    worker_id: WorkerId
    start: int
    end: int
    precision: Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A generation that is over, or as far as it came."""

    token_ids: tuple[int, ...]
    """All tokens that came, the stop token too."""
    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    ttft_s: float
    """Seconds from the call to the first token; 0 if none came."""
    tokens_per_s: float
    """After the first token; 0 if there are fewer than two."""
    route: tuple[RouteStage, ...]
    seed: int
    failovers: int = 0


class Progress:
    """How far one generation is. Written by its driver, read by anybody at any time. Times are the loop's."""

    def __init__(self, started_at_s: float) -> None:
        self._started_at_s = started_at_s
        self._first_at_s = started_at_s
        self._last_at_s = started_at_s
        self._texts: list[str] = []
        self.token_ids: list[int] = []
        self.n_prompt_tokens = 0
        self.seed = 0
        self.route: tuple[RouteStage, ...] = ()
        self.finish_reason: FinishReason = "cancelled"
        """Until the end: nobody has finished it yet."""

    def add(self, piece: TokenPiece, now_s: float) -> None:
        """Count a token."""
        if not self.token_ids:
            self._first_at_s = now_s
        self._last_at_s = now_s
        self.token_ids.append(piece.token_id)
        self._texts.append(piece.text)

    def generation(self) -> Generation:
        """What there is by now."""
        n_tokens = len(self.token_ids)
        spent_s = self._last_at_s - self._first_at_s
        return Generation(
            token_ids=tuple(self.token_ids),
            text="".join(self._texts),
            prompt_tokens=self.n_prompt_tokens,
            completion_tokens=n_tokens,
            finish_reason=self.finish_reason,
            ttft_s=self._first_at_s - self._started_at_s,
            tokens_per_s=(n_tokens - 1) / spent_s if n_tokens > 1 and spent_s > 0 else 0.0,
            route=self.route,
            seed=self.seed,
        )
