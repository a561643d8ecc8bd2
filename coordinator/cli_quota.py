"""`coord quota`: what keys may use and have used, and what workers gave. Limits are written as `NAME=VALUE`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, get_args
from urllib.parse import quote

import msgspec
import typer
from rich.table import Table

from coordinator.admin_client import AdminTarget, all_pages
from coordinator.cli_output import (
    cell,
    console,
    minute,
    notes,
    plain_table,
    print_answer,
    print_json,
    printable,
    short_ids,
)
from coordinator.cli_target import JsonOption, for_coordinator
from protocol.error_forms import repeated
from protocol.errors import ConfigError
from protocol.key_limits import KeyLimits, LimitsChange, Priority
from protocol.quota_rest import MAX_DAYS, Contribution, ContributionList, QuotaInfo, QuotaList, UsageDay, UsageList

quota_commands = typer.Typer(no_args_is_help=True, help="What keys may use, what they used, what workers gave.")

LIMITS_HELP = (
    "NAME=VALUE: requests-per-min, tokens-per-min, tokens-per-day, max-concurrent, max-context, "
    "priority (high, normal, low), models (names with commas in between), min-trust (0 to 1), "
    "pinned-ends (true, false)"
)
_NONE = "none"
_CHOICES = {"priority": get_args(Priority), "pinned_ends": ("true", "false")}

DaysOption = Annotated[
    int, typer.Option("--days", min=1, max=MAX_DAYS, help="How many days, today (UTC) being the last.")
]


def limits_change(given: Sequence[str]) -> LimitsChange:
    """What `NAME=VALUE ...` changes; `NAME=none` takes a limit away.

    Raises:
        ConfigError: a name or value can't be used, or a name is given twice; the message says which, and what can.
    """
    values: dict[str, Any] = {}
    for text in given:
        name, separator, value = text.partition("=")
        field = name.strip().replace("-", "_")
        if not separator or field not in LimitsChange.__struct_fields__:
            known = ", ".join(field.replace("_", "-") for field in LimitsChange.__struct_fields__)
            raise ConfigError(f"{repeated(text)} is no limit: write NAME=VALUE; the names are {known}")
        if field in values:
            raise ConfigError(f"the limit {name} is given twice")
        values[field] = _value(field, value.strip())
        if field in _CHOICES and values[field] not in (None, *_CHOICES[field]):
            raise ConfigError(f"{name} can be {', '.join(_CHOICES[field])}, or none, not {repeated(value)}")
    try:
        return msgspec.convert(values, LimitsChange, strict=False)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"these limits can't be used: {_as_written(str(exc))}") from exc


@quota_commands.command("show")
@for_coordinator
def show(
    target: AdminTarget,
    key_id: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="One key's id; without it all keys that have limits.")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show the limits of keys, and how much of them is used now."""
    if key_id is not None:
        path = f"/admin/v1/quotas/{quote(key_id, safe='')}"
        quota = target.ask(lambda session: session.get(path, QuotaInfo))
        print_answer(quota, quota_table((quota,)), as_json=as_json)
        return
    pages = target.ask(lambda session: all_pages(session, "/admin/v1/quotas", {}, QuotaList))
    found = tuple(quota for page in pages for quota in page.quotas)
    if as_json:
        print_json(QuotaList(quotas=found))
    elif not found:
        notes().print("No key has limits: coord key limits KEY NAME=VALUE ...", markup=False)
    else:
        console().print(quota_table(found))


@quota_commands.command("usage")
@for_coordinator
def usage(
    target: AdminTarget,
    key_id: Annotated[str | None, typer.Argument(metavar="[KEY]", help="One key's id; without it all.")] = None,
    *,
    days: DaysOption = 7,
    as_json: JsonOption = False,
) -> None:
    """Show what keys used, by day, as the workers reported it."""
    given = {"days": str(days), "key": key_id}
    pages = target.ask(lambda session: all_pages(session, "/admin/v1/usage", given, UsageList))
    used = tuple(one for page in pages for one in page.usage)
    if as_json:
        print_json(UsageList(usage=used))
    elif not used:
        notes().print(
            f"Workers reported no generation, as far back as --days {days} goes; `coord generation list` shows "
            "those that run",
            markup=False,
            soft_wrap=True,
        )
    else:
        console().print(usage_table(used))


@quota_commands.command("contributions")
@for_coordinator
def contributions(target: AdminTarget, *, days: DaysOption = 7, as_json: JsonOption = False) -> None:
    """Show what workers gave, by day and owner: tokens times the blocks that they ran them through."""
    given = {"days": str(days)}
    pages = target.ask(lambda session: all_pages(session, "/admin/v1/contributions", given, ContributionList))
    gave = tuple(one for page in pages for one in page.contributions)
    raised = tuple(pages[0].raised_owners)
    if as_json:
        print_json(ContributionList(contributions=gave, raised_owners=raised))
    else:
        if gave:
            console().print(contribution_table(gave))
        else:
            words = f"No worker gave anything, as far back as --days {days} goes"
            notes().print(words, markup=False)
        if raised:
            names = ", ".join(printable(owner) for owner in raised)
            console().print(f"priority earned: keys of {names} are served as one class higher", markup=False)


def new_limits(given: Sequence[str]) -> KeyLimits:
    """The limits of a new key; ConfigError as in `limits_change`."""
    return limits_change(given).applied_to(KeyLimits())


def _as_written(reason: str) -> str:
    """Why limits are refused, in the words of the command line."""
    for field in LimitsChange.__struct_fields__:
        reason = reason.replace(field, field.replace("_", "-"))
    return reason.replace("null for", f"{_NONE} for")


def limits_words(limits: KeyLimits) -> str:
    """The limits as one would write them on the command line; `none` if there are none."""
    given = msgspec.to_builtins(limits)
    words = (f"{name.replace('_', '-')}={_limit_text(value)}" for name, value in given.items())
    return " ".join(words) or _NONE


def _limit_text(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list() | tuple():
            return ",".join(value)
        case _:
            return str(value)


def quota_table(quotas: Sequence[QuotaInfo]) -> Table:
    """Keys with their limits and what is used of them."""
    table = plain_table("key", "name", "limits", "used now", "running")
    for quota in quotas:
        used = ", ".join(f"{rate.used:,} of {rate.limit:,} {rate.limit_name}" for rate in quota.rates)
        limits = limits_words(quota.limits)
        used = used if quota.revoked_at is None else f"revoked {minute(quota.revoked_at)}"
        table.add_row(quota.key_id, cell(quota.name), limits, used, str(quota.n_running))
    return table


def usage_table(days: Sequence[UsageDay]) -> Table:
    """What keys used, by day."""
    table = plain_table("day", "key", "name", "generations", "prompt tokens", "answer tokens")
    for day in days:
        counts = (day.n_generations, day.n_prompt_tokens, day.n_completion_tokens)
        table.add_row(day.day, day.key_id, cell(day.name), *(f"{count:,}" for count in counts))
    return table


def contribution_table(given: Sequence[Contribution]) -> Table:
    """What workers gave, by day."""
    table = plain_table("day", "owner", "worker", "tokens x blocks")
    for one in given:
        table.add_row(one.day, cell(one.owner), short_ids(one.worker_id), f"{one.n_token_blocks:,}")
    return table


def _value(field: str, text: str) -> Any:
    if text.lower() == _NONE:
        return None
    if field == "models":
        return tuple(part.strip() for part in text.split(","))
    if field in _CHOICES:
        return text
    is_whole = field != "min_trust"
    try:
        return int(text.replace("_", "").replace(",", "")) if is_whole else float(text)
    except ValueError:
        kind = "a whole number" if is_whole else "a number from 0 to 1"
        raise ConfigError(
            f"{field.replace('_', '-')} can be {kind}, or none for no limit, not {repeated(text)}"
        ) from None
