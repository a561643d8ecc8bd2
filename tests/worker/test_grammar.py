from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from protocol.errors import InvalidRequestError, ModelUnavailableError
from protocol.messages import Constraint, SamplingParams
from tests.support.tiny_tokenizer import ids_of, tiny_tokenizer
from worker import grammar as grammar_module
from worker.grammar import Grammar, TokenizerSource, Vocabulary
from worker.sampling import Sampler

VOCAB_SIZE = 270
"""As heads often are: a little more than the tokenizer has."""
STOPS = (1, 3)
OBJECT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "the", 'in "quotes"']}, "minItems": 1, "maxItems": 3},
        "more": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/point"}]},
    },
    "required": ["name", "tags", "more"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "number", "minimum": -1, "maximum": 1, "multipleOf": 0.25}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS: list[dict[str, Any]] = [
    OBJECT,
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 4},
    {"const": {"k": ["\u00e9\u4e16", None, 1.5]}},
    {"type": "string", "pattern": "^[A-Z][a-z]{2,4}-[0-9]{3}$"},
]
N_TOKENS = 200


@cache
def _tokenizer_folder(root: Path, text: str) -> Path:
    folder = root / str(abs(hash(text)))
    folder.mkdir()
    (folder / "tokenizer.json").write_text(text)
    return folder


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = _tokenizer_folder(tmp_path_factory.mktemp("tokenizers"), tiny_tokenizer().to_str())
    return Vocabulary(TokenizerSource(folder=folder, vocab_size=VOCAB_SIZE))


def grammar(vocabulary: Vocabulary, kind: Any, text: str, answer: Sequence[int] = ()) -> Grammar:
    return Grammar(vocabulary, Constraint(kind=kind, text=text), STOPS, answer)


def pieces(allowed: np.ndarray[Any, Any]) -> set[str | None]:
    return {tiny_tokenizer().id_to_token(int(token_id)) for token_id in allowed.nonzero()[0]}


def random_logits(seed: int, position: int) -> torch.Tensor:
    return torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed * 1000 + position)) * 3


def answered(found: Grammar, constraint: Constraint, seed: int, drafts: Sequence[int] = ()) -> list[int]:
    """What a model of random logits answers; `drafts` are guessed at every position."""
    wanted = SamplingParams(
        max_tokens=N_TOKENS, temperature=1.0, seed=seed, stop_token_ids=STOPS, constraint=constraint
    )
    sampler, token_ids = Sampler(wanted, (5, 6), found), [5, 6]
    while len(token_ids) < N_TOKENS and token_ids[-1] not in STOPS:
        position = len(token_ids)
        rows = torch.stack([random_logits(seed, position + i) for i in range(len(drafts) + 1)])
        token_ids += [choice.token_id for choice in sampler.verify(rows, position, drafts)]
    return token_ids[2:]


def text_of(token_ids: Sequence[int]) -> str:
    text: str = tiny_tokenizer().decode(list(token_ids), skip_special_tokens=True)
    return text


@settings(max_examples=25)
@given(schema=st.sampled_from(SCHEMAS), seed=st.integers(0, 10**6))
def test_whatever_a_model_says_is_an_instance_of_the_schema(
    vocabulary: Vocabulary, schema: dict[str, Any], seed: int
) -> None:
    constraint = Constraint(kind="json_schema", text=json.dumps(schema))
    token_ids = answered(Grammar(vocabulary, constraint, STOPS, ()), constraint, seed)
    assert token_ids[-1] in STOPS
    jsonschema.validate(json.loads(text_of(token_ids)), schema)
    # with guesses, nearly all of which the schema forbids, and when it goes on elsewhere in the middle
    guessed = answered(Grammar(vocabulary, constraint, STOPS, ()), constraint, seed, ids_of('{"a'))
    assert guessed == token_ids
    n_before = len(token_ids) // 2
    elsewhere = Grammar(vocabulary, constraint, STOPS, token_ids[:n_before])
    first = Grammar(vocabulary, constraint, STOPS, ())
    for end in range(n_before, len(token_ids)):
        assert (elsewhere.allowed(token_ids[:end]) == first.allowed(token_ids[:end])).all()


def test_a_position_that_is_taken_again_allows_the_same(vocabulary: Vocabulary) -> None:
    found = grammar(vocabulary, "regex", "(ab+|ac)d?")
    a, b, c = (tiny_tokenizer().token_to_id(letter) for letter in "abc")
    assert pieces(found.allowed([a])) == {"b", "c"}
    assert pieces(found.allowed([a, b, b])) == {"b", "d", "</s>", "<|im_end|>"}
    assert pieces(found.allowed([a, c])) == {"d", "</s>", "<|im_end|>"}
    assert pieces(found.allowed([])) == {"a"}


def test_looking_ahead_changes_nothing(vocabulary: Vocabulary) -> None:
    constraint = Constraint(kind="json_schema", text=json.dumps(OBJECT))
    with ThreadPoolExecutor(1) as threads:
        ahead = Grammar(vocabulary, constraint, STOPS, (), threads)
        assert answered(ahead, constraint, 5) == answered(Grammar(vocabulary, constraint, STOPS, ()), constraint, 5)


def test_threads_that_are_busy_with_others_hold_nobody_up(vocabulary: Vocabulary) -> None:
    freed = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        found = Grammar(vocabulary, Constraint(kind="regex", text="ab"), STOPS, (), threads)
        busy = threads.submit(freed.wait, 30.0)
        try:
            found.look_ahead(ids_of("a"))
            assert pieces(found.allowed(ids_of("a"))) == {"b"}
            assert not busy.done()
        finally:
            freed.set()


def test_a_complete_answer_can_only_end(vocabulary: Vocabulary) -> None:
    found = grammar(vocabulary, "lark", 'start: "th" "e"')
    assert pieces(found.allowed(ids_of("the"))) == {"</s>", "<|im_end|>"}
    assert not found.allowed(ids_of("the"))[264:].any()  # rows of the head that no token has


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("json_schema", '{"type": 5}', "type must be a string"),
        ("json_schema", '{"not": {"type": "null"}}', 'Unimplemented keys: \\["not"\\]'),
        ("json_schema", '{"$ref": "http://example.com/x"}', "does not fetch"),
        ("json_schema", '{"a": 1', "not JSON that can be read"),
        ("json_schema", "[" * 60_000, "not JSON that can be read"),
        ("regex", "(a", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("lark", "start: other", 'unknown name: "other"'),
        ("lark", '{"grammars": []}', "a grammar begins with a rule"),
        ("lark", 'start: %json {"multipleOf": 7}', "in a json_schema alone"),
        ("lark", 'start: %json {"multiple\\u004ff": 7}', "in a json_schema alone"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(
    vocabulary: Vocabulary, kind: str, text: str, why: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"can't be held to this {kind}: .*{why}"):
        grammar(vocabulary, kind, text)


@pytest.mark.parametrize(
    "schema",
    [
        '{"multipleOf": 999983}',
        '{"multipl\\u0065Of": 999983}',
        '{"multipleOf": 1e300000000}',
        '{"multipleOf": 1e-300000000}',
        '{"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}',
    ],
)
def test_multiples_that_would_take_gigabytes_are_refused(vocabulary: Vocabulary, schema: str) -> None:
    with pytest.raises(InvalidRequestError, match="multiple of all multipleOf is over 10000"):
        grammar(vocabulary, "json_schema", schema)


def test_usual_multiples_are_taken() -> None:
    assert grammar_module._n_states({Decimal("0.01"), Decimal(5), Decimal("-2.50")}) == 500
    assert grammar_module._n_states({Decimal(0)}) == 1


HOSTILE = {
    "ambiguous": ("lark", 'start: e\ne: e e | e e e | "a" | '),
    "repeated": ("regex", "((a{1,500}){1,500}){1,500}"),
    "long": ("regex", "a{1,1000000000}"),
    "many states": ("regex", "(a|b)*a(a|b){200}"),
    "alternatives": ("regex", "|".join(f"w{number:x}" for number in range(9000))),
    "deep": ("json_schema", '{"items":' * 900 + "{}" + "}" * 900),
    "wide": ("json_schema", json.dumps({"properties": {f"p{number}": {} for number in range(1500)}})),
    "long array": ("json_schema", '{"type": "array", "items": {"type": "integer"}, "minItems": 1000000000}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_constraint_is_refused_or_goes_on_in_little_time(vocabulary: Vocabulary, name: str) -> None:
    """The test's own limit of time is what would be hit: without limits the first takes a minute."""
    kind, text = HOSTILE[name]
    rng, answer = np.random.default_rng(3), []
    try:
        found = grammar(vocabulary, kind, text)
        for _ in range(100):
            allowed = found.allowed(answer).nonzero()[0]
            going_on = [int(token_id) for token_id in allowed if token_id not in STOPS]
            if not going_on:
                break
            answer.append(int(rng.choice(going_on)))
    except InvalidRequestError as error:
        assert len(error.message) < 700  # noqa: PT017 - either is right


def test_a_mask_that_takes_too_much_is_an_error_and_not_an_end(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matcher that broke lets every answer end."""
    monkeypatch.setattr(grammar_module, "STEP_LEXER_FUEL", 1)
    with pytest.raises(InvalidRequestError, match="too many expressions"):
        grammar(vocabulary, "regex", "([a-z]{1,20}x){1,9}|[^q]*y(b|c)*")


def test_an_answer_that_does_not_fit_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(InvalidRequestError, match="2 tokens of the answer so far"):
        grammar(vocabulary, "regex", "ab", [tiny_tokenizer().token_to_id(letter) for letter in "ba"])


def test_a_model_without_a_tokenizer_that_can_be_used_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="has no tokenizer"):
        Vocabulary(TokenizerSource(folder=tmp_path, vocab_size=9))
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    for text in (words.to_str(), "{}"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(InvalidRequestError, match="of a kind that llguidance can't use"):
            Vocabulary(TokenizerSource(folder=tmp_path, vocab_size=9))


def test_a_worker_without_the_library_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_module, "LIBRARY", "a_library_that_is_not_there")
    with pytest.raises(ModelUnavailableError, match=r"isn't installed there \(pip install"):
        Vocabulary(TokenizerSource(folder=tmp_path, vocab_size=9))
