"""What a benchmark of a cluster measured: when tokens came, and the figures made of that. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

TOGETHER_S = 0.0005
"""Tokens that come so soon one after the other came in one message, or in two that were read at once."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One generation while it runs and afterwards. Times are the loop's."""

    began_s: float
    came_at_s: list[float] = field(default_factory=list)
    """Of each token."""
    is_whole: bool = False
    """Whether it came to its end with all the tokens that were asked for."""
    failure: str = ""
    """Why it ended early; empty if it didn't, or was only interrupted."""
    n_failovers: int = 0
    n_drafted: int = 0
    """Tokens that the workers guessed."""
    n_accepted: int = 0
    """Guesses that held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelFigures:
    """What so many streams at once gave. Seconds; 0 where nothing could be measured."""

    n_streams: int
    n_whole: int
    """Generations that came to their end."""
    n_failed: int
    n_interrupted: int
    n_failovers: int
    n_drafted: int
    """Tokens that the workers guessed."""
    n_accepted: int
    """Guesses that held."""
    n_tokens: int
    """That came, those of unfinished generations too."""
    seconds: float
    """From the start of the first generation to the last token."""
    tokens_per_s: float
    """Of all streams together, waiting for first tokens included."""
    stream_tokens_per_s: float
    """Of one stream after its first token: the median."""
    ttft_p50_s: float
    ttft_p95_s: float
    inter_token_p50_s: float
    """Of tokens that came together, as guesses that held do, each has its share of the wait for all of them."""
    inter_token_p95_s: float
    failures: dict[str, int]
    """How often each reason was given."""


def level_figures(n_streams: int, attempts: Sequence[Attempt]) -> LevelFigures:
    """The figures of one level, as far as it came."""
    firsts = [attempt.came_at_s[0] - attempt.began_s for attempt in attempts if attempt.came_at_s]
    gaps = [gap_s for attempt in attempts for gap_s in _waits_s(attempt.came_at_s)]
    speeds = [speed for attempt in attempts if (speed := _tokens_per_s(attempt.came_at_s)) > 0]
    n_tokens = sum(len(attempt.came_at_s) for attempt in attempts)
    ends_s = [attempt.came_at_s[-1] for attempt in attempts if attempt.came_at_s]
    seconds = max(ends_s) - min(attempt.began_s for attempt in attempts) if ends_s else 0.0
    failures = Counter(attempt.failure for attempt in attempts if attempt.failure)
    n_whole = sum(attempt.is_whole for attempt in attempts)
    return LevelFigures(
        n_streams=n_streams,
        n_whole=n_whole,
        n_failed=failures.total(),
        n_interrupted=len(attempts) - n_whole - failures.total(),
        n_failovers=sum(attempt.n_failovers for attempt in attempts),
        n_drafted=sum(attempt.n_drafted for attempt in attempts),
        n_accepted=sum(attempt.n_accepted for attempt in attempts),
        n_tokens=n_tokens,
        seconds=seconds,
        tokens_per_s=n_tokens / seconds if seconds > 0 else 0.0,
        stream_tokens_per_s=quantile(speeds, 0.5),
        ttft_p50_s=quantile(firsts, 0.5),
        ttft_p95_s=quantile(firsts, 0.95),
        inter_token_p50_s=quantile(gaps, 0.5),
        inter_token_p95_s=quantile(gaps, 0.95),
        failures=dict(failures),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value seen that at least this share of all don't exceed; 0 if there are none."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """All that a benchmark gave."""

    model: str
    revision: str
    n_prompt_tokens: int
    max_tokens: int
    route: tuple[str, ...]
    """The hops of the last generation that came through: worker, blocks and precision of each."""
    levels: tuple[LevelFigures, ...]
    is_interrupted: bool

    @property
    def failures(self) -> dict[str, int]:
        """How often each reason was given, on all levels."""
        return dict(sum((Counter(level.failures) for level in self.levels), Counter()))

    def as_json(self) -> dict[str, Any]:
        """The report for programs."""
        return asdict(self)


def figures_table(report: BenchReport) -> Table:
    """The report for people; times in milliseconds."""
    table = Table(
        title=f"{report.model}, prompts of {report.n_prompt_tokens} tokens, answers of {report.max_tokens}",
        caption=f"via {' -> '.join(report.route)}" if report.route else None,
    )
    for column in ("streams", "tokens/s", "tokens/s a stream", "first token ms p50", "p95"):
        table.add_column(column, justify="right")
    for column in ("next token ms p50", "p95", "guesses", "done", "failed"):
        table.add_column(column, justify="right")
    for level in report.levels:
        is_cut = level.n_interrupted > 0
        table.add_row(
            f"{level.n_streams}{' (interrupted)' if is_cut else ''}",
            *(_cell(speed, 1) for speed in (level.tokens_per_s, level.stream_tokens_per_s)),
            *(_cell(1000 * wait_s, 0) for wait_s in (level.ttft_p50_s, level.ttft_p95_s)),
            *(_cell(1000 * wait_s, 1) for wait_s in (level.inter_token_p50_s, level.inter_token_p95_s)),
            f"{level.n_accepted}/{level.n_drafted}",
            *(str(level.n_whole), str(level.n_failed)),
        )
    return table


def _cell(figure: float, n_digits: int) -> str:
    return f"{figure:.{n_digits}f}" if figure else "-"  # nothing that was measured is 0


def _waits_s(came_at_s: Sequence[float]) -> Iterator[float]:
    """How long each token took, but for those that came together with the first."""
    i, before_s = 0, None
    while i < len(came_at_s):
        first, i = i, i + 1
        while i < len(came_at_s) and came_at_s[i] - came_at_s[i - 1] < TOGETHER_S:
            i += 1
        if before_s is not None:
            yield from [(came_at_s[first] - before_s) / (i - first)] * (i - first)
        before_s = came_at_s[first]


def _tokens_per_s(came_at_s: Sequence[float]) -> float:
    """After the first token; 0 if there are fewer than two."""
    if len(came_at_s) < 2 or came_at_s[-1] <= came_at_s[0]:
        return 0.0
    return (len(came_at_s) - 1) / (came_at_s[-1] - came_at_s[0])
