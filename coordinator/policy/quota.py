"""Whether a key's limits let a generation begin, and what of them is used after that. Values in, values out.

A generation takes prompt + max_tokens of its key's rates before it begins, and gives back what it turns out not to
have used. The session by which it goes on elsewhere takes only what goes beyond: the text so far is paid for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import sub
from typing import get_args

from coordinator.policy.ratelimit import Bucket, RateLimit, taken
from protocol.error_forms import by_limit
from protocol.errors import OverLimitError, QuotaExceededError
from protocol.key_limits import KeyLimits, LimitName

PERIODS_S: Mapping[LimitName, float] = {"requests/min": 60.0, "tokens/min": 60.0, "tokens/day": 86_400.0}
RATE_NAMES: tuple[LimitName, ...] = get_args(LimitName)
TOKEN_RATES: tuple[LimitName, ...] = ("tokens/min", "tokens/day")
CONCURRENT = "concurrent"
"""The limit that is no rate."""
RETRY_CONCURRENT_S = 1.0
"""When a generation ends, nobody knows before."""
CLOCK_WENT_BACK_S = 60.0
"""Whoever asks so much before what is stored has a clock that was set back; less is two clocks that differ."""
MAX_CONTINUATIONS = 16
"""So many sessions after the first have their prompts for nothing; beyond it looks like a way to pay for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """What is used of one rate."""

    used: float = 0.0
    """What was used beyond what was reserved is owed: it may be above the limit."""
    entered: float = 0.0
    """All that ever was taken, less what was given back: where the queue ends, as `Reservation.marks` count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What is used of a key's rates, in the order of `RATE_NAMES`, as of `updated_s`."""

    meters: tuple[Meter, ...] = (Meter(),) * len(RATE_NAMES)
    updated_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a generation may use at most."""

    n_prompt_tokens: int
    max_tokens: int

    @property
    def n_tokens(self) -> int:
        """Both together."""
        return self.n_prompt_tokens + self.max_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What the account holds for one generation, in whatever sessions it runs."""

    n_reserved: int
    """Tokens in the account for it: what it may use; once it is over, what it used."""
    marks: tuple[float, ...]  # of `TOKEN_RATES`: where in the queue it ends
    n_used: int = 0
    """Tokens that were reported so far."""
    n_sessions: int = 1
    is_open: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """After a report: account, reservation, and by how much the marks of later reservations move up."""

    account: Account
    reservation: Reservation
    given_back: tuple[float, ...] = (0.0,) * len(TOKEN_RATES)


def rate_of(limits: KeyLimits, name: LimitName) -> int | None:
    """The limit of this name."""
    match name:
        case "requests/min":
            return limits.requests_per_min
        case "tokens/min":
            return limits.tokens_per_min
        case "tokens/day":
            return limits.tokens_per_day


def has_limits(limits: KeyLimits) -> bool:
    """Whether anything has to be counted for the key."""
    return limits.max_concurrent is not None or any(rate_of(limits, name) is not None for name in RATE_NAMES)


def begun(
    account: Account, limits: KeyLimits, wanted: Wanted, n_running: int, now_s: float
) -> tuple[Account, Reservation]:
    """Account and reservation once a new generation may begin.

    Raises:
        QuotaExceededError: a limit is used up; nothing is taken.
    """
    _check_running(limits, n_running)
    amounts: dict[LimitName, int] = {"requests/min": 1, **dict.fromkeys(TOKEN_RATES, wanted.n_tokens)}
    after = _taken(account, limits, amounts, now_s)
    return after, Reservation(n_reserved=wanted.n_tokens, marks=tuple(meter.entered for meter in after.meters[1:]))


def continued(
    account: Account, limits: KeyLimits, held: Reservation, wanted: Wanted, now_s: float
) -> tuple[Account, Reservation]:
    """Account and reservation once the generation goes on by another session, as `can_continue` allows.

    Raises:
        QuotaExceededError: it needs more than what is left of its reservation, and a limit is used up.
    """
    n_more = max(0, wanted.n_tokens - held.n_reserved)
    after = _taken(account, limits, dict.fromkeys(TOKEN_RATES, n_more), now_s) if n_more else account
    return after, replace(held, n_reserved=held.n_reserved + n_more, n_sessions=held.n_sessions + 1)


def can_continue(held: Reservation) -> bool:
    """Whether the session that goes on belongs to this reservation, instead of being counted as a new request.

    One that is over has given its rest back, and others stand in its place of the queue.
    """
    return held.is_open and held.n_sessions <= MAX_CONTINUATIONS


def n_used(
    wanted: Wanted,
    n_prompt_tokens: int,
    n_completion_tokens: int,
    *,
    has_failed: bool,
    n_before: int,
    n_counted: int | None = None,
) -> int:
    """Tokens that a session has used by its tail's report, beside the `n_before` that its generation used before.

    Nothing if it failed before a first token. A prompt that is what was generated before isn't counted again. If
    the session by which it went on reported first, prompt and `n_counted` tokens were counted as that one's prompt.
    """
    n_completion = min(max(n_completion_tokens, 0), wanted.max_tokens)
    if n_counted is not None:
        return max(0, n_completion - n_counted)
    if has_failed and n_completion == 0:
        return 0
    n_prompt = min(max(n_prompt_tokens, wanted.n_prompt_tokens), wanted.n_tokens - n_completion)
    return n_completion + max(0, n_prompt - n_before)


def settled(
    account: Account, limits: KeyLimits, held: Reservation, n_tokens: int, now_s: float, *, is_over: bool
) -> Settled:
    """What follows a report of `n_tokens`; if the generation `is_over`, the rest is given back."""
    n_now = held.n_used + n_tokens
    n_kept = n_now if is_over or not held.is_open else max(held.n_reserved, n_now)
    after = replace(held, n_reserved=n_kept, n_used=n_now, is_open=held.is_open and not is_over)
    if n_kept >= held.n_reserved:
        return Settled(account=owed(account, limits, n_kept - held.n_reserved, now_s), reservation=after)
    now = at(account, limits, now_s)
    given_back = tuple(
        min(float(held.n_reserved - n_kept), max(0.0, mark - (meter.entered - meter.used)))
        for meter, mark in zip(now.meters[1:], held.marks, strict=True)
    )
    meters = (
        Meter(used=max(0.0, meter.used - n), entered=meter.entered - n)
        for meter, n in zip(now.meters[1:], given_back, strict=True)
    )
    return Settled(account=replace(now, meters=(now.meters[0], *meters)), reservation=after, given_back=given_back)


def owed(account: Account, limits: KeyLimits, n_tokens: int, now_s: float) -> Account:
    """The account after so many tokens that nothing was reserved for, whether or not there is room for them."""
    now = at(account, limits, now_s)
    meters = (
        meter
        if rate_of(limits, name) is None
        else Meter(used=meter.used + n_tokens, entered=meter.entered + n_tokens)
        for name, meter in zip(TOKEN_RATES, now.meters[1:], strict=True)
    )
    return replace(now, meters=(now.meters[0], *meters))


def at(account: Account, limits: KeyLimits, now_s: float) -> Account:
    """The account as it is by `now_s`; without a limit nothing is used.

    A time before what is stored changes nothing: to store it would have the time up to then come back twice.
    """
    elapsed_s = max(0.0, now_s - account.updated_s)
    meters = []
    for name, meter in zip(RATE_NAMES, account.meters, strict=True):
        limit = rate_of(limits, name)
        left = 0.0 if limit is None else max(0.0, meter.used - elapsed_s * limit / PERIODS_S[name])
        meters.append(Meter(used=left, entered=meter.entered))
    return Account(meters=tuple(meters), updated_s=max(account.updated_s, now_s))


def moved_up(was: Reservation, given_back: tuple[float, ...]) -> Reservation:
    """What is held behind something that gave so much back. `replace` takes several times as long."""
    marks = tuple(map(sub, was.marks, given_back))
    n_sessions, is_open = was.n_sessions, was.is_open
    return Reservation(
        n_reserved=was.n_reserved, marks=marks, n_used=was.n_used, n_sessions=n_sessions, is_open=is_open
    )


def set_back(account: Account, now_s: float) -> Account:
    """The account for a request at `now_s`: what is used stays, and comes back from now on, if the clock went back.

    To be kept even if the request is refused, or the next one would wait as long again.
    """
    return replace(account, updated_s=now_s) if now_s < account.updated_s - CLOCK_WENT_BACK_S else account


def refused_again(error: QuotaExceededError, wait_s: float) -> QuotaExceededError:
    """The same refusal as it is some time later, when `wait_s` are left."""
    before = _until(error.retry_after_s or 0.0)
    again = QuotaExceededError(error.message.replace(before, _until(wait_s)), retry_after_s=wait_s)
    again.rates = error.rates
    return by_limit(error.limit_name, again)


def _until(wait_s: float) -> str:
    return f"{math.ceil(wait_s):,} s until there is room"


def _check_running(limits: KeyLimits, n_running: int) -> None:
    if limits.max_concurrent is not None and n_running >= limits.max_concurrent:
        message = (
            f"concurrent generations: {n_running + 1:,} of {limits.max_concurrent:,} would run; ask again when one "
            "has ended"
        )
        raise by_limit(CONCURRENT, QuotaExceededError(message, retry_after_s=RETRY_CONCURRENT_S))


def _taken(account: Account, limits: KeyLimits, amounts: Mapping[LimitName, int], now_s: float) -> Account:
    """All of `amounts` or none; the limit that takes longest to have room again is the one that is named."""
    now = at(account, limits, now_s)
    ahead_s = now.updated_s - now_s
    meters, refusals = [], []
    for name, meter in zip(RATE_NAMES, now.meters, strict=True):
        limit, n = rate_of(limits, name), amounts.get(name, 0)
        if limit is None or n == 0:
            meters.append(meter)
            continue
        if n > limit:
            message = (
                f"{n:,} tokens more are needed at once, and this API key's limit is {limit:,} {name}, so waiting "
                "doesn't help: ask for less"
            )
            raise by_limit(name, OverLimitError(message))
        bucket = Bucket(n_left=limit - meter.used, updated_s=now_s)
        result = taken(bucket, RateLimit(capacity=limit, refill_per_s=limit / PERIODS_S[name]), now_s, n)
        if not result.is_granted:
            words = f"{name}: {math.ceil(meter.used + n):,} of {limit:,} would be used"
            refusals.append((result.wait_s + ahead_s, name, words))
        meters.append(Meter(used=limit - result.bucket.n_left, entered=meter.entered + n))
    if refusals:
        wait_s, name, words = max(refusals)
        raise by_limit(name, QuotaExceededError(f"{words}; {_until(wait_s)}", retry_after_s=wait_s))
    return replace(now, meters=tuple(meters))
