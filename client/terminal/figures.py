"""Counts and times of a chat, as people read them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from client.output import stage_text, summary_line
from client.results import Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """All answers of a chat together, those too that were taken back."""

    n_answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    n_later_tokens: int = 0
    """Tokens but the first of each answer."""
    later_s: float = 0.0
    """In which those came."""
    failovers: int = 0

    def plus(self, result: Generation) -> Totals:
        """With one more answer."""
        has_pace = result.tokens_per_s > 0
        n_later = result.completion_tokens - 1 if has_pace else 0
        return Totals(
            n_answers=self.n_answers + 1,
            prompt_tokens=self.prompt_tokens + result.prompt_tokens,
            cached_tokens=self.cached_tokens + result.cached_tokens,
            completion_tokens=self.completion_tokens + result.completion_tokens,
            n_later_tokens=self.n_later_tokens + n_later,
            later_s=self.later_s + (n_later / result.tokens_per_s if has_pace else 0.0),
            failovers=self.failovers + result.failovers,
        )


def answer_line(result: Generation, context_length: int) -> str:
    """What is shown below an answer: its figures, and how much of the context is used."""
    used = result.prompt_tokens + result.completion_tokens
    return f"{summary_line(result)}; context {used} of {context_length}"


def totals_rows(totals: Totals) -> list[tuple[str, str]]:
    """The chat as a whole."""
    pace = f"{totals.n_later_tokens / totals.later_s:.1f}" if totals.later_s > 0 else "-"
    return [
        ("answers", str(totals.n_answers)),
        ("prompt tokens", f"{totals.prompt_tokens}, of which workers had {totals.cached_tokens}"),
        ("answer tokens", str(totals.completion_tokens)),
        ("tokens/s after the first", pace),
        ("failovers", str(totals.failovers)),
    ]


def latest_rows(result: Generation, context_length: int) -> list[tuple[str, str]]:
    """The latest answer."""
    return [
        ("latest answer", f"{result.completion_tokens} tokens ({result.finish_reason}), seed {result.seed}"),
        ("first token after", f"{result.ttft_s:.2f} s"),
        ("tokens/s", f"{result.tokens_per_s:.1f}"),
        ("prompt", f"{result.prompt_tokens} tokens, of which workers had {result.cached_tokens}"),
        ("context", f"{result.prompt_tokens + result.completion_tokens} of {context_length}"),
    ]


def route_rows(result: Generation) -> list[str]:
    """The workers of the latest answer in their order, the last ones that it had if some failed."""
    return [*(stage_text(stage) for stage in result.route), f"failovers: {result.failovers}"]
