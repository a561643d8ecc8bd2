"""Choose the next token as transformers would, keyed by (seed, position) so that another worker chooses the same.

Logits are brought to the CPU in float32 before anything is drawn: a GPU's generator gives other numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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

from protocol.errors import InternalError, ProtocolError
from protocol.messages import SamplingParams

_NO_IDS: Any = torch.zeros((1, 0), dtype=torch.long)
"""The warpers are told earlier tokens and don't look at them."""


class Sampler:
    """Chooses the tokens of one session, whose tokens it knows by position: the prompt's, then its own."""

    def __init__(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> None:
        self.params = params
        self._token_ids = list(prompt_token_ids)
        self._stop_token_ids = frozenset(params.stop_token_ids)
        self._warpers = _warpers(params)
        self._penalty = (
            RepetitionPenaltyLogitsProcessor(params.repetition_penalty)
            if params.repetition_penalty != 1.0
            else None
        )

    def is_stop(self, token_id: int) -> bool:
        """Whether the token ends the generation."""
        return token_id in self._stop_token_ids

    def verify(self, logits: torch.Tensor, position: int, drafts: Sequence[int]) -> list[int]:
        """Choose the tokens from `position` on, as far as the `drafts` for them hold, and the one that follows.

        Each is chosen as if the ones before had been run alone, so the answer is the same with drafts and without;
        for a guess that is certain of itself this is the rejection rule of speculative sampling (Leviathan et al.
        2023). Ends at a stop token. `logits` (1 + len(drafts), vocab_size) are of the positions from the one before
        `position` on. Raises as `sample` does.
        """
        token_ids: list[int] = []
        for index, row in enumerate(logits):
            token_ids.append(self.sample(row, position + index))
            if index == len(drafts) or token_ids[-1] != drafts[index] or self.is_stop(token_ids[-1]):
                break
        return token_ids

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, position: int) -> int:
        """Choose the token for `position` from `logits` (vocab_size,) of the position before it.

        Positions may be taken again (after a rollback): tokens from `position` on are forgotten first.

        Raises:
            ProtocolError: a repetition penalty is wanted and earlier tokens aren't known.
            InternalError: the logits aren't finite; the weights, or a stage before this one, are broken.
        """
        scores: Any = logits.to("cpu", torch.float32).unsqueeze(0)  # (1, vocab)
        if not bool(torch.isfinite(scores.sum())):
            raise InternalError(
                f"the logits for position {position} are not finite: broken weights or a broken stage"
            )
        if self._penalty is not None:
            scores = self._penalty(self._history(position), scores)
        if self.params.temperature == 0.0:
            token_id = int(scores.argmax())
        else:
            probabilities = self._warpers(_NO_IDS, scores)[0].softmax(-1)
            token_id = int(torch.multinomial(probabilities, 1, generator=generator_for(self.params.seed, position)))
        del self._token_ids[position:]
        if len(self._token_ids) == position:
            self._token_ids.append(token_id)
        return token_id

    def _history(self, position: int) -> Any:
        if len(self._token_ids) < position:
            raise ProtocolError(
                f"a repetition penalty for position {position} needs all tokens before it; {len(self._token_ids)} "
                "are known: send the whole prompt to the tail"
            )
        return torch.tensor([self._token_ids[:position]], dtype=torch.long)  # (1, position)


def generator_for(seed: int, position: int) -> torch.Generator:
    """The generator for one position: the same on every machine, and unrelated to its neighbours'."""
    digest = hashlib.sha256(f"brigade-sample:{seed}:{position}".encode()).digest()
    generator = torch.Generator("cpu")
    generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return generator


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
