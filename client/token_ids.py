"""Text to token ids by a model's tokenizer.json, which is nobody's word: what it does wrong is blamed on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tokenizers import Tokenizer

from protocol.errors import (
    BrigadeError,
    ContextExceededError,
    InvalidRequestError,
    TooLargeError,
    UntrustedFileError,
)

MAX_PROMPT_CHARACTERS = 64 * 2**20
_MAX_REASON = 500
_CHARACTERS_PER_TOKEN = 8
"""More than most texts have: a beginning of so many for each token of the context is mostly too long for it."""


def read_tokenizer(data: bytes | None) -> Tokenizer | None:
    """The tokenizer in a tokenizer.json; None if there is no such file.

    Raises:
        UntrustedFileError: it is malformed.
    """
    if data is None:
        return None
    with _untrusted("the model's tokenizer.json is malformed"):
        tokenizer = Tokenizer.from_buffer(data)
    # Left in some files from training; a prompt is never cut silently.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def ids_of(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool, context_length: int) -> list[int]:
    """The ids of a text. Blocks: call it in a thread.

    A text that is far too long for the context is refused by its beginning: ten megabytes take a minute.

    Raises:
        ContextExceededError: its beginning has more tokens than the context.
        UntrustedFileError: the tokenizer fails on it.
    """
    with _untrusted("the model's tokenizer can't do this text"):
        n_characters = _CHARACTERS_PER_TOKEN * context_length
        while n_characters < len(text):
            n_tokens = len(tokenizer.encode(text[:n_characters], add_special_tokens=False).ids)
            if n_tokens > context_length:
                raise ContextExceededError(
                    f"the first {n_characters} of the prompt's {len(text)} characters are {n_tokens} tokens, "
                    f"and the model's context {context_length}: shorten the prompt"
                )
            n_characters *= 2
        return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


def first_ids_of(tokenizer: Tokenizer, text: str, n_tokens: int) -> list[int]:
    """The ids of so much of a text's beginning that they are `n_tokens` with the special ones around it. Blocks.

    Raises:
        InvalidRequestError: there is no room for text.
        UntrustedFileError: the tokenizer fails on it.
    """
    n_special = tokenizer.num_special_tokens_to_add(False)  # noqa: FBT003 - of one text, not of a pair
    if n_tokens <= n_special:
        raise InvalidRequestError(f"{n_tokens} tokens have no room for text beside {n_special} special ones")
    with _untrusted("the model's tokenizer can't do this text"):
        encoding = tokenizer.encode(text, add_special_tokens=False)
        encoding.truncate(n_tokens - n_special)
        return tokenizer.post_process(encoding).ids


@contextmanager
def _untrusted(what: str) -> Iterator[None]:
    """Blame the file for what its tokenizer does: the library raises bare Exception, and panics beyond that.

    It panics where a regular expression of the file backtracks for too long (it counts), which isn't an Exception.
    """
    try:
        yield
    except BrigadeError:
        raise
    except BaseException as exc:
        if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
            raise
        raise UntrustedFileError(f"{what}: {str(exc)[:_MAX_REASON]}") from exc


def check_text(text: str) -> None:
    """Refuse what is no text, or too much of it.

    Raises:
        InvalidRequestError: empty, or not valid Unicode.
        TooLargeError: too long.
    """
    if not text:
        raise InvalidRequestError("the prompt is empty: give some text")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise TooLargeError(f"a prompt of {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are read")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise InvalidRequestError(
            f"the prompt is not valid Unicode at character {exc.start}: it must be UTF-8"
        ) from exc
