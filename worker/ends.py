"""A model's two ends, for a client that keeps them to itself: embedding and first blocks, last blocks and head.

Both are stages as workers have them, and tokens are sampled as a tail samples them, so a private session gives the
tokens that any other gives. Everything here blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from protocol.errors import (
    ContextExceededError,
    InvalidRequestError,
    ModelFaultError,
    NotFoundError,
    ProtocolError,
)
from protocol.ids import BlockRange
from protocol.messages import Precision, SamplingParams
from worker.grammar import Grammar, TokenizerSource, Vocabulary
from worker.grammar_trial import GrammarTrial
from worker.kv_cache import KVCache
from worker.loaded_stage import load_stage
from worker.sampling import Choice, Sampler, check_token_ids
from worker.stage import Stage, StageInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A token, and its hidden states after the first blocks: None if nothing comes after it."""

    choice: Choice
    is_stop: bool
    is_outgrown: bool
    """Whether the text is to be run anew before there can be another."""
    states: torch.Tensor | None


@dataclass(slots=True)
class _Text:
    """One text: its caches at both ends, and who chooses its tokens."""

    prompt: torch.Tensor
    n_positions: int
    n_prompt: int
    """Tokens before the answer."""
    first: KVCache
    last: KVCache
    sampler: Sampler


class Ends:
    """The ends of one model, and the texts that are being made with it."""

    def __init__(self, first: Stage, last: Stage, config_folder: Path) -> None:
        """`config_folder`: where the model's tokenizer is."""
        self._first = first
        self._last = last
        self._tokenizer = TokenizerSource(folder=config_folder, vocab_size=first.vocab_size)
        self._vocabulary: Vocabulary | None = None
        self._trial = GrammarTrial()
        self._texts: dict[int, _Text] = {}

    @property
    def hidden_size(self) -> int:
        """Of the hidden states between the two."""
        return self._first.hidden_size

    def begin(
        self, text_id: int, prompt: Sequence[int], n_positions: int, sampling: SamplingParams, n_prompt: int = 0
    ) -> None:
        """Begin a text, in place of one of the same id. `n_prompt`: tokens before the answer; 0: all.

        Raises:
            InvalidRequestError: no prompt, a token id that the model doesn't have, or an unusable constraint.
        """
        if not prompt or min(prompt) < 0:
            raise InvalidRequestError(f"a prompt of ids that aren't all of the model's {self._first.vocab_size}")
        check_token_ids(sampling, prompt, self._first.vocab_size)
        self._texts[text_id] = _Text(
            prompt=torch.tensor(prompt, dtype=torch.long),
            n_positions=n_positions,
            n_prompt=n_prompt or len(prompt),
            first=self._first.new_cache(n_positions),
            last=self._last.new_cache(n_positions),
            sampler=Sampler(sampling, prompt, self._grammar(sampling, prompt)),
        )

    def forget(self, text_id: int) -> None:
        """Free a text; nothing happens if there is none."""
        self._texts.pop(text_id, None)

    def run_first(self, text_id: int, position: int, n_tokens: int) -> torch.Tensor:
        """Hidden states (n_tokens, hidden_size) of the next so many positions of the prompt.

        Raises:
            NotFoundError: no such text.
            ProtocolError: they aren't the next, or the prompt hasn't so many.
        """
        text = self._text(text_id)
        if position != text.first.length or not 1 <= n_tokens <= len(text.prompt) - position:
            raise ProtocolError(f"positions from {position} on of a prompt that has come to {text.first.length}")
        return self._embedded(text, text.prompt[position : position + n_tokens])

    def run_last(self, text_id: int, position: int, states: torch.Tensor, *, wants_token: bool) -> Sampled | None:
        """Take what the workers made of the next positions; the token after them if it is wanted.

        Raises:
            NotFoundError: no such text.
            ProtocolError: they aren't the next positions, not as wide as the model's, or such that no logits follow
                from them: the files here have the hashes of the model's, so it is the states.
            ContextExceededError: more positions than were announced.
        """
        text, end = self._text(text_id), position + len(states)
        if position != text.last.length or states.shape != (len(states), self.hidden_size):
            raise ProtocolError(
                f"hidden states {tuple(states.shape)} at position {position}; next are those of position "
                f"{text.last.length}, {self.hidden_size} wide"
            )
        if end > text.n_positions:
            raise ContextExceededError(f"position {end} of a text that has at most {text.n_positions}")
        step = StageInput(payload=states, position=position, cache=text.last, n_prompt=text.n_prompt)
        result = self._last.run([replace(step, n_logits=int(wants_token))])[0]
        if not wants_token:
            return None
        try:
            choice = text.sampler.sample(result[-1], end)
        except ModelFaultError as exc:
            raise ProtocolError(f"hidden states that lead nowhere: {exc.message}") from exc
        is_stop = text.sampler.is_stop(choice.token_id)
        anew_after = self._first.rotary.lengths.anew_after(text.n_prompt)
        is_outgrown = not is_stop and anew_after is not None and end >= anew_after
        goes_on = not is_stop and not is_outgrown and end + 1 < text.n_positions
        following = self._embedded(text, torch.tensor([choice.token_id])) if goes_on else None
        return Sampled(choice=choice, is_stop=is_stop, is_outgrown=is_outgrown, states=following)

    def _grammar(self, sampling: SamplingParams, prompt: Sequence[int]) -> Grammar | None:
        if sampling.constraint is None:
            return None
        self._vocabulary = self._vocabulary or Vocabulary(self._tokenizer)
        self._trial.check(self._tokenizer, sampling.constraint)
        answer = prompt[len(prompt) - sampling.n_answered :]
        return Grammar(self._vocabulary, sampling.constraint, sampling.stop_token_ids, answer)

    def _embedded(self, text: _Text, token_ids: torch.Tensor) -> torch.Tensor:
        position = text.first.length
        step = StageInput(payload=token_ids, position=position, cache=text.first, n_prompt=text.n_prompt)
        return self._first.run([step])[0]

    def _text(self, text_id: int) -> _Text:
        if text_id not in self._texts:
            raise NotFoundError(f"text {text_id} was not begun here")
        return self._texts[text_id]


def ranges_of_ends(n_blocks: int, n_blocks_each: int) -> tuple[BlockRange, BlockRange]:
    """The blocks at both ends of a model.

    Raises:
        InvalidRequestError: nothing would be left in between.
    """
    if not 1 <= n_blocks_each <= (n_blocks - 1) // 2:
        raise InvalidRequestError(f"{n_blocks_each} blocks at each end of a model that has {n_blocks}")
    return BlockRange(0, n_blocks_each), BlockRange(n_blocks - n_blocks_each, n_blocks)


def load_ends(
    config_folder: Path,
    first_files: Sequence[Path],
    last_files: Sequence[Path],
    ranges: tuple[BlockRange, BlockRange],
    precision: Precision,
) -> Ends:
    """Load both ends from their files, on the CPU.

    Raises:
        UntrustedFileError: config or weights aren't what they should be, or the architecture can't be cut so.
        StorageError: a file can't be read.
    """
    dtype, device = getattr(torch, precision), torch.device("cpu")
    first, last = (
        load_stage(config_folder, files, blocks, dtype=dtype, device=device)
        for files, blocks in zip((first_files, last_files), ranges, strict=True)
    )
    return Ends(first, last, config_folder)
