"""Measure a cluster as its users meet it: so many streams at once, prompts of a fixed text, no early end.

Every prompt begins with a word of its own, so that no worker has computed any of it before.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from client.bench_figures import Attempt, BenchReport, LevelFigures, level_figures
from client.options import check_min_trust
from client.output import stage_text
from protocol.errors import BrigadeError, ContextExceededError, InvalidRequestError
from protocol.rest import ModelInfo

if TYPE_CHECKING:
    from client.api import Client

DEFAULT_STREAMS = (1, 2, 4, 8, 16)
MAX_STREAMS = 1024
WARM_UP_TOKENS = 4
TEXT = (
    "The keeper of the lighthouse wrote one page every evening: which ships had passed, how the wind had turned, "
    "what the lamp had burnt, and who had come up the stairs to ask for the way. Nobody read these pages for a "
    "hundred years, until the tower was to be sold and someone opened the cupboard under the lamp. "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What is to be measured."""

    model: ModelInfo
    streams: tuple[int, ...] = DEFAULT_STREAMS
    """How many generations at once, level by level."""
    n_rounds: int = 1
    """Generations that each stream does, one after the other."""
    n_prompt_tokens: int = 128
    max_tokens: int = 64
    timeout_s: float = 600.0
    """For one generation."""
    min_trust: float = 0.0
    pinned_ends: bool = False
    speculate: bool = True

    def check(self) -> None:
        """Refuse what can't be measured.

        Raises:
            InvalidRequestError: a number is out of its range.
            ContextExceededError: prompt and answer don't fit the model's context.
        """
        for n_streams in self.streams:
            if not 1 <= n_streams <= MAX_STREAMS:
                raise InvalidRequestError(f"{n_streams} streams; 1 to {MAX_STREAMS} can be measured")
        for name, value, least in (
            ("rounds", self.n_rounds, 1),
            ("tokens of a prompt", self.n_prompt_tokens, 1),
            ("tokens of an answer", self.max_tokens, 2),  # one has no time between tokens
        ):
            if value < least:
                raise InvalidRequestError(f"the number of {name} is {value}; it must be {least} or more")
        check_min_trust(self.min_trust)
        n_positions = self.n_prompt_tokens + self.max_tokens
        if n_positions > self.model.context_length:
            raise ContextExceededError(
                f"a prompt of {self.n_prompt_tokens} tokens and an answer of {self.max_tokens} are {n_positions}, "
                f"and the context of {self.model.name} is {self.model.context_length}: ask for fewer with "
                "--prompt-tokens or --max-tokens"
            )


class Bench:
    """Runs a plan. What was measured can be had at any time, after a cancellation too."""

    def __init__(self, client: Client, plan: BenchPlan) -> None:
        self.on_progress: Callable[[str], None] = lambda _text: None
        """Called with a line for people, after every token."""
        self._client = client
        self._plan = plan
        self._run = secrets.token_hex(4)
        self._n_prompts = 0
        self._route: tuple[str, ...] = ()
        self._levels: list[LevelFigures] = []
        self._running: tuple[int, list[Attempt]] | None = None
        self._is_over = False

    def report(self) -> BenchReport:
        """What there is by now."""
        levels = list(self._levels)
        if self._running is not None:
            levels.append(level_figures(*self._running))
        return BenchReport(
            model=self._plan.model.name,
            revision=self._plan.model.revision,
            n_prompt_tokens=self._plan.n_prompt_tokens,
            max_tokens=self._plan.max_tokens,
            route=self._route,
            levels=tuple(levels),
            is_interrupted=not self._is_over,
        )

    async def run(self) -> None:
        """Measure level by level. A generation that fails is counted, and the others go on.

        Raises:
            BrigadeError: what the first of the warm-up generations failed with: nothing could be measured.
        """
        for n_streams in self._plan.streams:
            self.on_progress(f"{n_streams} streams: warming up")
            await self._warm_up(n_streams)
            attempts: list[Attempt] = []
            self._running = (n_streams, attempts)
            async with asyncio.TaskGroup() as tasks:
                for i in range(n_streams):
                    tasks.create_task(self._stream(attempts), name=f"bench stream {i}")
            self._levels.append(level_figures(n_streams, attempts))
            self._running = None
        self._is_over = True

    async def _warm_up(self, n_streams: int) -> None:
        """One generation each, short; only if the very first of all fails is there no point in going on."""
        attempts = [Attempt(began_s=0.0) for _ in range(n_streams)]
        n_tokens = min(WARM_UP_TOKENS, self._plan.max_tokens)
        if not self._levels:
            await self._generate(attempts.pop(), n_tokens)
        async with asyncio.TaskGroup() as tasks:
            for attempt in attempts:
                tasks.create_task(self._tried(attempt, n_tokens), name="bench warm-up")

    async def _stream(self, attempts: list[Attempt]) -> None:
        for _ in range(self._plan.n_rounds):
            prompt = await self._prompt()
            attempt = Attempt(began_s=asyncio.get_running_loop().time())
            attempts.append(attempt)
            await self._tried(attempt, self._plan.max_tokens, prompt)

    async def _tried(self, attempt: Attempt, n_tokens: int, prompt: list[int] | None = None) -> None:
        try:
            await self._generate(attempt, n_tokens, prompt)
        except BrigadeError as exc:
            attempt.failure = exc.message

    async def _generate(self, attempt: Attempt, n_tokens: int, prompt: list[int] | None = None) -> None:
        now_s = asyncio.get_running_loop().time
        stream = self._client.stream(
            self._plan.model,
            prompt if prompt is not None else await self._prompt(),
            max_tokens=n_tokens,
            temperature=0.0,
            seed=0,
            ignore_eos=True,
            timeout_s=self._plan.timeout_s,
            min_trust=self._plan.min_trust,
            pinned_ends=self._plan.pinned_ends,
            speculate=self._plan.speculate,
        )
        async with stream:
            async for _ in stream:
                attempt.came_at_s.append(now_s())
                if self._running is not None:
                    self._tell(*self._running)
        result = stream.result
        attempt.is_whole = len(attempt.came_at_s) == n_tokens
        attempt.n_failovers = result.failovers
        attempt.n_drafted, attempt.n_accepted = result.drafted_tokens, result.accepted_tokens
        self._route = tuple(stage_text(stage) for stage in result.route)

    def _tell(self, n_streams: int, attempts: list[Attempt]) -> None:
        n_tokens = sum(len(attempt.came_at_s) for attempt in attempts)
        n_wanted = n_streams * self._plan.n_rounds * self._plan.max_tokens
        self.on_progress(f"{n_streams} streams: {n_tokens} of {n_wanted} tokens")

    async def _prompt(self) -> list[int]:
        """Token ids of a prompt that nobody has sent yet."""
        n_tokens, self._n_prompts = self._plan.n_prompt_tokens, self._n_prompts + 1
        n_copies = 1
        while True:
            text = f"{self._run} {self._n_prompts}. {TEXT * n_copies}"
            token_ids = await self._client.encoded(self._plan.model, text)
            if len(token_ids) >= n_tokens:
                return token_ids[:n_tokens]
            n_copies *= 2
