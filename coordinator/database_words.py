"""What people are told of a database that can't be used: which it is, why, and what to do. Pure."""

from __future__ import annotations

from sqlalchemy import URL

SQLITE_LOCKED = "database is locked"
_POSTGRES_ADVICE = {
    "25006": "the server takes no writes: it is a standby, or default_transaction_read_only is on; name the one "
    "that takes them",
    "28000": "let this user in (pg_hba.conf), or name another with --database-url",
    "28P01": "check the password in --database-url",
    "3D000": "create it, or name another with --database-url",
    "42501": "give this user its rights on the database's tables back; it had made them",
    "53100": "make room on the disk of the server",
    "53300": "raise max_connections, or the limit of this user or database, or close what else is connected",
    "57P03": "the server starts or stops: try again once it is up; a coordinator that runs does so by itself",
}
"""By PostgreSQL's own codes of errors (SQLSTATE)."""


def described(url: URL) -> str:
    """Which database it is; never its password."""
    if url.get_backend_name() == "sqlite":
        return f"the database {url.database}"
    host = url.host or url.query.get("host") or "localhost"  # a folder with its socket stands in the query
    hosts = host if isinstance(host, str) else ", ".join(host)
    return f"the PostgreSQL database {url.database or ''} at {hosts}:{url.port or 5432}"


def advice(url: URL, exc: BaseException | None, *, busy_timeout_s: float) -> str:
    """What to do about what the driver raised, as the end of a sentence."""
    if url.get_backend_name() == "sqlite":
        if exc is not None and first_line(exc) == SQLITE_LOCKED:
            return f" for {busy_timeout_s:g} s: try again, and see which other program holds it"
        return "; check that it is a Brigade database, its permissions, and that the disk has room"
    known = _POSTGRES_ADVICE.get(getattr(exc, "sqlstate", None) or "")
    return f"; {known or 'check --database-url, and that the server runs and lets this user in'}"


def first_line(exc: BaseException) -> str:
    """The driver's own words; further lines may hold the values of a row."""
    lines = str(getattr(exc, "strerror", None) or exc).strip().splitlines()
    return lines[0][:200] if lines else type(exc).__name__
