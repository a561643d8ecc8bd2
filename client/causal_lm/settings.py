"""What transformers' generation settings ask of a cluster, and which of them no cluster carries out. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from transformers import GenerationConfig

from protocol.errors import InvalidRequestError

DEFAULT_MAX_TOKENS = 20
DEFAULT_TOP_K = 50
"""What transformers does where nothing is said."""

_CARRIED_OUT = frozenset(
    {
        *(
            "max_length",
            "max_new_tokens",
            "max_time",
            "stop_strings",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
        ),
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
        *("num_return_sequences", "return_dict_in_generate"),
    }
)
_WITHOUT_EFFECT = frozenset(
    {
        # how memory is used here: there is none to use
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"),
        *("compile_config", "disable_compile"),
        # of beam search and assisted generation, which are refused by their own names
        *("early_stopping", "length_penalty", "num_assistant_tokens", "num_assistant_tokens_schedule"),
        *("assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "max_matching_ngram_size"),
        # the same tokens are chosen of normalised scores
        "renormalize_logits",
        "transformers_version",
    }
)
_CHANGES_NOTHING: Mapping[str, float] = MappingProxyType(
    {
        "num_beams": 1,
        "num_beam_groups": 1,
        "diversity_penalty": 0.0,
        "min_length": 0,
        "min_new_tokens": 0,
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
        "guidance_scale": 1.0,
        "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0,
        "encoder_repetition_penalty": 1.0,
    }
)
_INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "output_scores": "Client.stream(logprobs=20) gives the likeliest tokens of each place",
        "output_logits": "Client.stream(logprobs=20) gives the likeliest tokens of each place",
        "output_hidden_states": "Client.hidden_states gives those of any block",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What one call of `generate` is to do, in the cluster's terms."""

    options: Mapping[str, Any]
    """Fields of `GenerationOptions`, the same for all rows."""
    n_each: int
    """Answers to each prompt."""
    does_sample: bool
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    bos_token_id: int | None
    stop_strings: tuple[str, ...]
    max_time_s: float | None
    returns_dict: bool


def merged_config(
    of_model: GenerationConfig, given: GenerationConfig | None, changes: Mapping[str, Any]
) -> GenerationConfig:
    """As transformers: `changes` before `given` before what the model's authors recommend.

    Raises:
        InvalidRequestError: there is no such setting, or a value is one that transformers refuses.
    """
    config = _empty() if given is None else copy.deepcopy(given)
    unknown = vars(config).keys() - vars(_empty()).keys() - vars(of_model).keys()
    try:
        config.update(**of_model.to_dict(), defaults_only=True)
        left_over = config.update(**changes)
    except ValueError as exc:
        raise InvalidRequestError(str(exc)) from exc
    unknown |= {name for name, value in left_over.items() if value is not None}
    if unknown:
        raise InvalidRequestError(f"generate takes no {', '.join(sorted(unknown))} with a cluster's model")
    return config


def wanted_of(config: GenerationConfig, *, width: int) -> Wanted:
    """What a merged config asks for prompts of `width` tokens, padding included.

    Raises:
        InvalidRequestError: it can't be carried out; says which setting.
    """
    _refuse_the_impossible(config)
    does_sample = bool(config.do_sample)
    eos_token_ids = _ids(config.eos_token_id)
    return Wanted(
        options=_length(config, width)
        | (_sampling(config) if does_sample else {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0})
        | {
            "repetition_penalty": 1.0 if config.repetition_penalty is None else config.repetition_penalty,
            "stop_token_ids": eos_token_ids,
        },
        n_each=config.num_return_sequences or 1,
        does_sample=does_sample,
        eos_token_ids=eos_token_ids,
        pad_token_id=next(iter((*_ids(config.pad_token_id), *eos_token_ids)), None),
        bos_token_id=config.bos_token_id,
        stop_strings=_texts(config.stop_strings),
        max_time_s=config.max_time,
        returns_dict=bool(config.return_dict_in_generate),
    )


def _empty() -> Any:
    made: Any = GenerationConfig  # its methods have no types
    return made()


def _refuse_the_impossible(config: GenerationConfig) -> None:
    known = vars(_empty()).keys() - _CARRIED_OUT - _WITHOUT_EFFECT
    for name in sorted(name for name in known if not name.startswith("_")):
        value = getattr(config, name)
        if value is None or value is False or value == _CHANGES_NOTHING.get(name):
            continue
        instead = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
        raise InvalidRequestError(
            f"{name} is {value!r}, which a cluster can't carry out: workers choose the tokens, and give nothing "
            f"else{instead}; leave it out, or pass {name}={_CHANGES_NOTHING.get(name)} if the model recommends it"
        )


def _length(config: GenerationConfig, width: int) -> dict[str, Any]:
    """How long answers may be: a limit of the whole text ends where the context does, the answer's must fit it."""
    if config.max_new_tokens is not None:
        return {"max_tokens": config.max_new_tokens}
    if config.max_length is None:
        return {"default_max_tokens": DEFAULT_MAX_TOKENS}
    if config.max_length <= width:
        raise InvalidRequestError(
            f"max_length is {config.max_length} and the prompt has {width} tokens: nothing is left for an answer; "
            "give max_new_tokens"
        )
    return {"default_max_tokens": config.max_length - width}


def _sampling(config: GenerationConfig) -> dict[str, Any]:
    temperature = 1.0 if config.temperature is None else config.temperature
    if temperature <= 0:
        raise InvalidRequestError(
            f"temperature is {temperature} and do_sample is on; for greedy answers turn it off"
        )
    return {
        "temperature": temperature,
        "top_k": DEFAULT_TOP_K if config.top_k is None else config.top_k,
        "top_p": 1.0 if config.top_p is None else config.top_p,
        "min_p": 0.0 if config.min_p is None else config.min_p,
    }


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(int(token_id) for token_id in value)


def _texts(value: str | list[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
