"""Errors of the tree in `errors` that only a coordinator raises, about its database."""

from __future__ import annotations

from protocol.errors import StorageError


class DatabaseVersionError(StorageError):
    """The database was written by a newer version of Brigade."""

    code = "database_version"


class DatabaseAwayError(StorageError):
    """Who may use how much can't be looked up or kept just now, so nothing is granted."""

    code = "database_away"
    status = 503


class LeaseError(StorageError):
    """Another coordinator holds the lease on the database: this one doesn't start, or stops."""

    code = "lease"
    status = 503
