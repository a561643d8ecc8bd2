"""How a generation is to be: what the caller asks, what the model recommends, what is possible. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from client.stopping import checked_stops
from protocol.errors import ContextExceededError, InvalidRequestError
from protocol.ids import BlockRange
from protocol.messages import Constraint, ConstraintKind, SamplingParams

DEFAULT_MAX_TOKENS = 256
DEFAULT_TIMEOUT_S = 600.0
DEFAULT_PRIVATE_BLOCKS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What a model's own generation_config.json recommends."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What the caller asks; None is the model's own recommendation, greedy if it has none."""

    max_tokens: int | None = None
    default_max_tokens: int = DEFAULT_MAX_TOKENS
    """Where `max_tokens` is None: at most so many, and no more than the context has room for."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    """-2 to 2, taken off the score of every token that the answer has already; None is 0."""
    frequency_penalty: float | None = None
    """Likewise, once for each time that the answer has the token."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token ids, and what is added to their scores: -100 all but bans one, 100 all but asks for it."""
    logprobs: int | None = None
    """Not None: pieces carry the natural logarithm of their token's probability, and of so many of the likeliest
    for its place (0 to 20). Of the model's own scores, before temperature, penalties, biases and constraints."""
    json_schema: str | None = None
    """Hold the answer to a JSON schema (its text). This, `regex` or `grammar`: one at most."""
    regex: str | None = None
    """Hold the answer to a regular expression, which it matches as a whole; without look-around and references."""
    grammar: str | None = None
    """Hold the answer to a grammar, in llguidance's form of Lark, that begins with the rule `start`."""
    seed: int | None = None
    stop: Sequence[str] = ()
    shown_specials: Sequence[str] = ()
    """Special tokens whose text is part of the answer's, by that text; the others have none."""
    ignore_eos: bool = False
    """Go on after the model's own end, up to `max_tokens`: to measure, every answer must be of the same length."""
    stop_token_ids: Sequence[int] | None = None
    """Tokens that end the answer in place of the model's own; the one that does is the last of the answer's ids."""
    speculate: bool = True
    """Let the workers guess tokens ahead where that pays; the text is the same, as far as precision allows."""
    wait_for_quota: bool = False
    """Where a limit of the API key is used up, wait until there is room, within `timeout_s`, instead of failing."""
    wait_for_workers: bool = False
    """Where no worker holds all the model, nor is about to, wait until one does, within `timeout_s`, likewise."""
    private: bool = False
    """Run the model's ends on this machine: workers get hidden states alone. Needs `brigade[worker]` here."""
    private_blocks: int | None = None
    """Likewise: how many blocks at each end; None is `DEFAULT_PRIVATE_BLOCKS`."""
    min_trust: float = 0.0
    """Only workers of this trust or more may take part."""
    pinned_ends: bool = False
    """The first and the last worker, which see the tokens, must be ones whose trust an operator pinned."""
    timeout_s: float = DEFAULT_TIMEOUT_S

    def check(self) -> None:
        """Refuse what no model can do.

        Raises:
            InvalidRequestError: a value is out of its range; the message names it.
        """
        if isinstance(self.stop, str):
            raise InvalidRequestError("stop is one string; give a list of strings")
        checked_stops(self.stop)
        if not math.isfinite(self.timeout_s) or self.timeout_s <= 0:
            raise InvalidRequestError(f"the timeout is {self.timeout_s} s; it must be a number above 0")
        if self.private_blocks is not None and not self.private:
            raise InvalidRequestError(
                f"private_blocks is {self.private_blocks}, but the generation is not private: ask for that too"
            )
        if self.private_blocks is not None and self.private_blocks < 1:
            raise InvalidRequestError(
                f"private_blocks is {self.private_blocks}; it must be at least 1: without a block of your own at "
                "each end of the model, whoever has its files reads prompt and answer off what is sent"
            )
        check_min_trust(self.min_trust)
        if self.ignore_eos and self.stop_token_ids:
            raise InvalidRequestError(
                f"{len(self.stop_token_ids)} stop_token_ids are to end the answer, and with ignore_eos none does: "
                "give one of the two"
            )
        # 0 stands for the tokens that end the model's answers, which aren't known yet
        ends = self.ending_tokens((0,))
        self.sampling(SamplingDefaults(), stop_token_ids=ends, max_tokens=self.n_wanted, random_seed=0)

    @property
    def n_wanted(self) -> int:
        """Most tokens of the answer, whatever the context."""
        return self.default_max_tokens if self.max_tokens is None else self.max_tokens

    def ending_tokens(self, of_model: tuple[int, ...]) -> tuple[int, ...]:
        """The tokens that end the answer; `of_model` are those that its authors name."""
        if self.ignore_eos:
            return ()
        return of_model if self.stop_token_ids is None else tuple(self.stop_token_ids)

    def between(self, n_blocks: int) -> BlockRange | None:
        """The blocks of a model of `n_blocks` that workers run, if the others run on this machine; None: all.

        Raises:
            InvalidRequestError: nothing would be left for workers.
        """
        if not self.private:
            return None
        n_each = DEFAULT_PRIVATE_BLOCKS if self.private_blocks is None else self.private_blocks
        if 2 * n_each >= n_blocks:
            raise InvalidRequestError(
                f"{n_each} private blocks at each end of a model that has {n_blocks} leave none for workers; at "
                f"most {(n_blocks - 1) // 2} can be asked for"
            )
        return BlockRange(n_each, n_blocks - n_each)

    def n_allowed(self, n_prompt_tokens: int, context_length: int) -> int:
        """Most tokens of the answer to such a prompt.

        Raises:
            ContextExceededError: prompt and answer don't fit the model's context.
        """
        n_free = context_length - n_prompt_tokens
        if n_free < 1:
            raise ContextExceededError(
                f"the prompt has {n_prompt_tokens} tokens and the model's context {context_length}: nothing is "
                "left for an answer; shorten the prompt"
            )
        if self.max_tokens is None:
            return min(self.default_max_tokens, n_free)
        if self.max_tokens > n_free:
            raise ContextExceededError(
                f"max_tokens is {self.max_tokens}, but after a prompt of {n_prompt_tokens} tokens the model's "
                f"context of {context_length} has room for {n_free}"
            )
        return self.max_tokens

    def sampling(
        self, defaults: SamplingDefaults, *, stop_token_ids: tuple[int, ...], max_tokens: int, random_seed: int
    ) -> SamplingParams:
        """What the tail is told.

        Raises:
            InvalidRequestError: a value is out of its range; the message names it.
        """
        try:
            return SamplingParams(
                temperature=_either(self.temperature, defaults.temperature),
                top_p=_either(self.top_p, defaults.top_p),
                top_k=defaults.top_k if self.top_k is None else self.top_k,
                min_p=_either(self.min_p, defaults.min_p),
                repetition_penalty=_either(self.repetition_penalty, defaults.repetition_penalty),
                seed=random_seed if self.seed is None else self.seed,
                stop_token_ids=stop_token_ids,
                max_tokens=max_tokens,
                presence_penalty=_either(self.presence_penalty, 0.0),
                frequency_penalty=_either(self.frequency_penalty, 0.0),
                logit_bias=_biases(self.logit_bias),
                n_logprobs=self.logprobs,
                constraint=self._constraint(),
            )
        except ValueError as exc:
            raise InvalidRequestError(str(exc)) from exc

    def _constraint(self) -> Constraint | None:
        texts: dict[ConstraintKind, str | None] = {
            "json_schema": self.json_schema,
            "regex": self.regex,
            "lark": self.grammar,
        }
        given = [Constraint(kind=kind, text=text) for kind, text in texts.items() if text is not None]
        if len(given) > 1:
            raise InvalidRequestError(
                f"{len(given)} of json_schema, regex and grammar are given; an answer is held to one at most"
            )
        if self.json_schema is not None:
            _check_schema(self.json_schema)
        return given[0] if given else None


def check_min_trust(min_trust: float) -> None:
    """Refuse a floor that no worker's trust can be measured by.

    Raises:
        InvalidRequestError: it isn't between 0 and 1.
    """
    if not 0.0 <= min_trust <= 1.0:  # written so that NaN is refused too
        raise InvalidRequestError(f"the trust asked for (--min-trust) is {min_trust}; it must be between 0 and 1")


def _biases(given: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    for token_id, bias in given.items():
        if type(token_id) is not int or not isinstance(bias, int | float):  # callers may have no types
            raise InvalidRequestError(f"logit_bias is from token ids to numbers; {token_id!r} to {bias!r} isn't")
    return tuple((token_id, float(bias)) for token_id, bias in given.items())


def _check_schema(text: str) -> None:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequestError(f"json_schema is not JSON: {exc}") from exc
    if not isinstance(schema, dict):
        raise InvalidRequestError(f"json_schema is a JSON {type(schema).__name__}; it must be an object")


def _either(asked: float | None, recommended: float) -> float:
    try:
        return float(recommended if asked is None else asked)
    except OverflowError:  # a whole number that no float is near; it is refused by its name
        return math.inf
