"""The parts of a statement that see, before it writes, that the lease and the keys' quotas are as they are known.

Nobody else writes reservations then: they are written by who holds the key's row. Each row is locked as it is seen,
and what was waited for is compared as it is after the wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from coordinator.fence import LEASE_ID
from coordinator.postgres_rows import rows_of
from coordinator.quota_records import QUOTAS, quota_values
from coordinator.remembered_quotas import Known

_NAMES = tuple(column.name for column in QUOTAS.c)
N_KNOWN = len(_NAMES) + 2
"""Parameters of `known_arrays`."""


def _is_same(name: str) -> str:
    text = "::text" if name == "limits" else ""  # JSON knows no equality
    return f"quotas.{name}{text} = before.{name}{text}"


def as_known(first: int) -> tuple[str, str]:
    """The parts, and the condition that all is as it is in `known_arrays`, parameters from `first` on."""
    free = first + len(_NAMES)
    parts = f"""lease AS MATERIALIZED (
    SELECT FROM coordinator_lease WHERE id = {LEASE_ID} AND epoch = ${free + 1} FOR SHARE
), as_before AS MATERIALIZED (
    SELECT FROM quotas JOIN {rows_of(QUOTAS, _NAMES, first, "before")}
    ON {" AND ".join(_is_same(name) for name in _NAMES)} ORDER BY quotas.key_id FOR UPDATE OF quotas
)"""  # noqa: S608 - names of ours, and numbers of parameters
    condition = f"""EXISTS (SELECT FROM lease)
        AND (SELECT count(*) FROM as_before) = cardinality(${first})
        AND NOT EXISTS (SELECT FROM quotas WHERE key_id = ANY(${free}::VARCHAR[]))"""  # noqa: S608 - as above
    return parts, condition


def known_arrays(known: Known, epoch: int) -> Iterator[Any]:
    """Parameters: the keys' rows as they are stored, the keys that have none, and the lease's epoch."""
    before = [
        quota_values(replace(one.quota, account=one.quota.stored)) | {"key_id": key_id, "limits": one.limits_text}
        for key_id, one in known.items()
        if one is not None
    ]
    yield from ([row[name] for row in before] for name in _NAMES)
    yield [key_id for key_id, one in known.items() if one is None]
    yield epoch
