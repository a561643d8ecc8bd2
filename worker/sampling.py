"""Choose the next token as transformers would, keyed by (seed, position) so that another worker chooses the same.

Logits are brought to the CPU in float32 before anything is drawn: a GPU's generator gives other numbers. Where
nothing but the likeliest token is wanted, it is found where they are, and only its id is copied.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from protocol.errors import InvalidRequestError, ProtocolError
from protocol.messages import SamplingParams
from worker.grammar import Grammar
from worker.likeliest import likeliest_tokens
from worker.model_fault import logits_fault

_NO_IDS: Any = torch.zeros((1, 0), dtype=torch.long)
"""The warpers are told earlier tokens and don't look at them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A token that was chosen. The logarithms are natural, and of probabilities by the model's own scores."""

    token_id: int
    logprob: float | None = None
    """None: it wasn't asked for."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens, the likeliest first."""


class Sampler:
    """Chooses the tokens of one session, whose tokens it knows by position: the prompt's, then its own.

    Log probabilities are those of OpenAI and vLLM: the log-softmax, in float32, of the logits as they come out of
    the model, before biases, penalties, constraint and temperature.
    """

    def __init__(
        self, params: SamplingParams, prompt_token_ids: Sequence[int], grammar: Grammar | None = None
    ) -> None:
        """`grammar` is that of the constraint, if there is one."""
        self.params = params
        self._token_ids = list(prompt_token_ids)
        self._answer_start = len(self._token_ids) - params.n_answered
        self._stop_token_ids = frozenset(params.stop_token_ids)
        self._grammar = grammar
        self._warpers = _warpers(params)
        self._bias = _bias(params)
        self._penalty = (
            RepetitionPenaltyLogitsProcessor(params.repetition_penalty)
            if params.repetition_penalty != 1.0
            else None
        )
        self._penalises_answer = bool(params.presence_penalty or params.frequency_penalty)
        is_changed = self._bias is not None or self._penalty is not None or self._penalises_answer
        self.wants_likeliest = (
            params.temperature == 0.0 and params.n_logprobs is None and grammar is None and not is_changed
        )
        """Whether nothing but the largest of the logits counts."""

    def is_stop(self, token_id: int) -> bool:
        """Whether the token ends the generation."""
        return token_id in self._stop_token_ids

    def verify(
        self,
        logits: torch.Tensor,
        position: int,
        drafts: Sequence[int],
        likeliest: Sequence[int | None] | None = None,
    ) -> list[Choice]:
        """Choose the tokens from `position` on, as far as the `drafts` for them hold, and the one that follows.

        Each is chosen as if the ones before had been run alone, so the answer is the same with drafts and without;
        for a guess that is certain of itself this is the rejection rule of speculative sampling (Leviathan et al.
        2023). A guess that the grammar doesn't allow is never chosen, so it doesn't hold. Ends at a stop token.
        `logits` (1 + len(drafts), vocab_size) are of the positions from the one before `position` on. Raises as
        `sample` does. `likeliest`: what `likeliest_tokens` gave for them, if that was asked already.
        """
        choices: list[Choice] = []
        if self.wants_likeliest and likeliest is None:
            likeliest = likeliest_tokens([logits])
        for index, row in enumerate(logits):
            if likeliest is None:
                choices.append(self.sample(row, position + index))
            else:
                choices.append(self._likeliest(likeliest[index], position + index))
            chosen = choices[-1].token_id
            if index == len(drafts) or chosen != drafts[index] or self.is_stop(chosen):
                break
        return choices

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, position: int) -> Choice:
        """Choose the token for `position` from `logits` (vocab_size,) of the position before it.

        Positions may be taken again (after a rollback): tokens from `position` on are forgotten first.

        Raises:
            ProtocolError: a penalty or a grammar is wanted and earlier tokens aren't known.
            ModelFaultError: the logits aren't finite: what came was, so the weights here are broken.
            InvalidRequestError: the grammar allows nothing here, or finding out takes too much.
        """
        if self.wants_likeliest:
            return self._likeliest(likeliest_tokens([logits.unsqueeze(0)])[0], position)
        raw: Any = logits.to("cpu", torch.float32).unsqueeze(0)  # (1, vocab)
        if not torch.isfinite(raw.sum()):
            raise logits_fault(position)
        scores = self._changed(raw, position)
        if self.params.temperature == 0.0:
            token_id = int(scores.argmax())
        else:
            probabilities = self._warpers(_NO_IDS, scores)[0].softmax(-1)
            token_id = int(torch.multinomial(probabilities, 1, generator=generator_for(self.params.seed, position)))
        self._took(token_id, position)
        return self._choice(raw[0], token_id)

    def _likeliest(self, token_id: int | None, position: int) -> Choice:
        if token_id is None:
            raise logits_fault(position)
        self._took(token_id, position)
        return Choice(token_id=token_id)

    def _took(self, token_id: int, position: int) -> None:
        del self._token_ids[position:]
        if len(self._token_ids) == position:
            self._token_ids.append(token_id)
            if self._grammar is not None and not self.is_stop(token_id):
                self._grammar.look_ahead(self._token_ids[self._answer_start :])

    def _changed(self, scores: Any, position: int) -> Any:
        """The scores (1, vocab) with all that was asked but temperature and what comes after it."""
        if self._bias is not None:
            scores = scores.index_add(1, *self._bias)
        if self._penalty is not None:
            scores = self._penalty(torch.tensor([self._before(position)], dtype=torch.long), scores)
        if self._penalises_answer:
            scores = self._less_answered(scores, self._before(position)[self._answer_start :])
        if self._grammar is not None:
            allowed = self._grammar.allowed(self._before(position)[self._answer_start :])  # (vocab,)
            scores = scores.masked_fill(~torch.from_numpy(allowed), -math.inf)
        return scores

    def _less_answered(self, scores: Any, answer: Sequence[int]) -> Any:
        """OpenAI's presence and frequency penalties, by the tokens of the answer alone."""
        answered: Any = torch.tensor(answer, dtype=torch.long)
        token_ids, counts = answered.unique(return_counts=True)
        penalties = self.params.presence_penalty + self.params.frequency_penalty * counts
        return scores.index_add(1, token_ids, -penalties.to(scores.dtype)[None])

    def _before(self, position: int) -> list[int]:
        if len(self._token_ids) < position:
            raise ProtocolError(
                f"what is asked of position {position} needs all tokens before it; {len(self._token_ids)} are "
                "known: send the whole prompt to the tail"
            )
        return self._token_ids[:position]

    def _choice(self, raw: Any, token_id: int) -> Choice:
        n_top = self.params.n_logprobs
        if n_top is None:
            return Choice(token_id=token_id)
        logprobs = raw.log_softmax(-1)  # (vocab,)
        top = logprobs.topk(min(n_top, len(logprobs)))
        return Choice(
            token_id=token_id,
            logprob=float(logprobs[token_id]),
            top_logprobs=tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)),
        )


def check_token_ids(params: SamplingParams, prompt_token_ids: Sequence[int], vocab_size: int) -> None:
    """Refuse tokens that the model doesn't have.

    Raises:
        InvalidRequestError: the prompt has one, a bias is for one, or more of the prompt is said to be the answer's
            than it has.
    """
    if max(prompt_token_ids, default=0) >= vocab_size:
        raise InvalidRequestError(f"a token id of the prompt is outside of the vocabulary of {vocab_size}")
    biased = max((token_id for token_id, _ in params.logit_bias), default=0)
    if biased >= vocab_size:
        raise InvalidRequestError(f"a bias for token {biased}, outside of the vocabulary of {vocab_size}")
    if params.n_answered > len(prompt_token_ids):
        raise InvalidRequestError(
            f"{params.n_answered} tokens of a prompt of {len(prompt_token_ids)} are said to be the answer's"
        )


def generator_for(seed: int, position: int) -> torch.Generator:
    """The generator for one position: the same on every machine, and unrelated to its neighbours'."""
    digest = hashlib.sha256(f"brigade-sample:{seed}:{position}".encode()).digest()
    generator = torch.Generator("cpu")
    generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return generator


def _bias(params: SamplingParams) -> tuple[Any, Any] | None:
    """Token ids and what is added to their scores; transformers' own makes two vectors of the vocabulary a step."""
    if not params.logit_bias:
        return None
    token_ids, biases = zip(*params.logit_bias, strict=True)
    return torch.tensor(token_ids), torch.tensor([biases], dtype=torch.float32)


def _warpers(params: SamplingParams) -> LogitsProcessorList:
    """Those that change anything, in the order in which transformers' generate() applies them."""
    warpers = LogitsProcessorList()
    if params.temperature not in (0.0, 1.0):
        warpers.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k > 0:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0.0:
        warpers.append(MinPLogitsWarper(params.min_p))
    return warpers
