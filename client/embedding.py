"""Texts as vectors: encoded, sent to the workers a few at a time, pooled.

Texts of about the same length go at the same time, since workers run those together.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from client.deadline import Deadline
from client.hidden_states import ANY_WORKER, Routing, StatesFinder, StatesRequest
from client.options import check_min_trust
from client.pooling import Vector, finished, pooled, pooling_of
from client.tokenizer import ModelTokenizer
from protocol.embedding_settings import Pooling
from protocol.errors import ContextExceededError, InvalidRequestError
from protocol.key_limits import RateLeft
from protocol.rest import ModelInfo

MAX_AT_ONCE = 8
"""Texts that are under way at the same time: enough to keep a few workers busy, and one key within its limits."""
MAX_INPUTS = 65_536

Input = str | Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingOptions:
    """How vectors are to be made."""

    pooling: Literal["auto"] | Pooling = "auto"
    """auto: as the model's authors do, or the mean of an encoder's states, the last of a decoder's."""
    normalize: bool = True
    """To length 1, so that a product of two is their cosine."""
    dimensions: int | None = None
    """Only so many, the first; for models that were trained so (Matryoshka)."""
    truncate: bool = False
    """Cut a text that is too long, instead of refusing it."""
    routing: Routing = ANY_WORKER

    def check(self, hidden_size: int) -> None:
        """Refuse what can't be.

        Raises:
            InvalidRequestError: a value is out of its range; the message names it.
        """
        if self.pooling not in ("auto", "mean", "last", "cls"):
            raise InvalidRequestError(f"pooling is {self.pooling!r}; it can be auto, mean, last or cls")
        if self.dimensions is not None and not 1 <= self.dimensions <= hidden_size:
            raise InvalidRequestError(f"dimensions is {self.dimensions}; the model's vectors have {hidden_size}")
        check_min_trust(self.routing.min_trust)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """Vectors of texts, in the order of these."""

    vectors: NDArray[np.float32]
    """(n_texts, size)"""
    n_tokens: int
    """Of all texts together, as they were run."""
    pooling: Pooling
    """How they were made."""
    n_truncated: int = 0
    """Texts that were cut."""
    failovers: int = 0
    """Routes that failed and were replaced."""
    rates: tuple[RateLeft, ...] = ()
    """What was left of the key's limits when the route of the text that came last was given."""


async def embedded(
    finder: StatesFinder,
    info: ModelInfo,
    tokenizer: ModelTokenizer,
    inputs: Sequence[Input],
    options: EmbeddingOptions,
    deadline: Deadline,
) -> Embeddings:
    """The vectors of all inputs, or none.

    Raises:
        InvalidRequestError: an option, or an input that is none.
        ContextExceededError: an input is too long.
        BrigadeError: as `StatesFinder.states`.
    """
    options.check(tokenizer.hidden_size)
    settings = tokenizer.embedding_settings
    pooling = pooling_of(info.name, info.kind, settings) if options.pooling == "auto" else options.pooling
    limit = min(info.context_length, (settings.max_tokens if settings else None) or info.context_length)
    async with deadline.applied():
        texts, n_truncated = await _encoded(tokenizer, inputs, limit, truncate=options.truncate)
    vectors: dict[int, Vector] = {}
    n_failed = 0
    rates: tuple[RateLeft, ...] = ()

    async def work(indices: Iterator[int]) -> None:
        nonlocal n_failed, rates
        for index in indices:
            request = states_request(info, tokenizer, texts[index], info.n_blocks, options.routing)
            states = await finder.states(request, deadline)
            n_failed, rates = n_failed + states.failovers, states.rates
            vector = pooled(states.rows, pooling)
            vectors[index] = finished(vector, dimensions=options.dimensions, normalize=options.normalize)

    await _worked_on(texts, work)
    return Embeddings(
        vectors=np.stack([vectors[index] for index in range(len(texts))]),
        n_tokens=sum(map(len, texts)),
        pooling=pooling,
        n_truncated=n_truncated,
        failovers=n_failed,
        rates=rates,
    )


async def _worked_on(
    texts: Sequence[Sequence[int]], work: Callable[[Iterator[int]], Coroutine[None, None, None]]
) -> None:
    """Have several workers at a time take texts by their index, the longest first: those would be waited for."""
    indices = iter(sorted(range(len(texts)), key=lambda index: -len(texts[index])))
    try:
        async with asyncio.TaskGroup() as working:
            for number in range(min(MAX_AT_ONCE, len(texts))):
                working.create_task(work(indices), name=f"embed {number}")
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


def states_request(
    info: ModelInfo, tokenizer: ModelTokenizer, token_ids: Sequence[int], states_after: int, routing: Routing
) -> StatesRequest:
    """What is asked of workers.

    Raises:
        InvalidRequestError: the model has no such block.
        ContextExceededError: the text is too long.
    """
    if not 0 <= states_after <= info.n_blocks:
        raise InvalidRequestError(
            f"hidden states after block {states_after} of {info.name}, which has {info.n_blocks}: 0 is what goes "
            f"into the first, {info.n_blocks} the last with the final norm"
        )
    _check_length(len(token_ids), info.context_length, "the text", "shorten it")
    return StatesRequest(
        model=info.name,
        revision=info.revision,
        vocab_size=tokenizer.vocab_size,
        hidden_size=tokenizer.hidden_size,
        token_ids=tuple(token_ids),
        states_after=states_after,
        routing=routing,
    )


def routing_of(fields: Mapping[str, Any]) -> Routing:
    """The fields of `Routing` as such.

    Raises:
        InvalidRequestError: there is no such field.
    """
    try:
        return Routing(**fields)
    except TypeError as exc:
        raise InvalidRequestError(f"not an option of this call: {exc}") from exc


def deadline_in(timeout_s: float) -> Deadline:
    """From now on.

    Raises:
        InvalidRequestError: no time at all.
    """
    if not math.isfinite(timeout_s) or timeout_s <= 0:
        raise InvalidRequestError(f"the timeout is {timeout_s} s; it must be above 0")
    return Deadline(at_s=asyncio.get_running_loop().time() + timeout_s, timeout_s=timeout_s)


async def _encoded(
    tokenizer: ModelTokenizer, inputs: Sequence[Input], limit: int, *, truncate: bool
) -> tuple[list[list[int]], int]:
    """Token ids of every input, at most `limit` each; and how many inputs were cut to that."""
    if isinstance(inputs, str) or not inputs or isinstance(inputs[0], int):
        raise InvalidRequestError("give a list of texts, or of lists of token ids, with at least one in it")
    if len(inputs) > MAX_INPUTS:
        raise InvalidRequestError(f"{len(inputs)} texts at once; at most {MAX_INPUTS}")
    found, n_truncated = [], 0
    for number, one in enumerate(inputs):
        try:
            ids = await tokenizer.encoded_text(one) if isinstance(one, str) else tokenizer.checked_ids(one)
        except InvalidRequestError as exc:
            raise InvalidRequestError(f"input {number}: {exc.message}") from exc
        if len(ids) > limit and truncate:
            ids = await tokenizer.truncated_text(one, limit) if isinstance(one, str) else ids[:limit]
            n_truncated += 1
        _check_length(len(ids), limit, f"input {number}", "shorten it, or have it cut (truncate)")
        found.append(ids)
    return found, n_truncated


def _check_length(n_tokens: int, limit: int, what: str, advice: str) -> None:
    if n_tokens > limit:
        raise ContextExceededError(f"{what} has {n_tokens} tokens; the model takes {limit}: {advice}")
