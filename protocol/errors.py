"""The one tree of errors: what can go wrong, its code on the wire, its HTTP status and its exit code.

Two branches: `RequestError` is the caller's to mend, `ServiceError` is ours (or the machine's). A message is a
sentence with the numbers in it and says what to do; it never holds a secret, a prompt or a token id. What only a
coordinator raises, about its database, is in `coordinator_errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import msgspec

from protocol import exit_codes

if TYPE_CHECKING:
    from protocol.key_limits import RateLeft


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error as it travels: HTTP bodies are `{"error": ErrorBody}`, frames carry it as it is."""

    code: str
    message: str
    retry_after_s: float | None = None


class BrigadeError(Exception):
    """Root of everything that Brigade raises on purpose."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = exit_codes.EXIT_INTERNAL

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s

    def body(self) -> ErrorBody:
        """The error as it goes on the wire."""
        return ErrorBody(code=self.code, message=self.message, retry_after_s=self.retry_after_s)


class RequestError(BrigadeError):
    """The caller's fault: the same request will fail again until the caller changes it."""

    code = "bad_request"
    status = 400
    exit_code = exit_codes.EXIT_USAGE


class InvalidRequestError(RequestError):
    """A value is missing, malformed or out of its range."""

    code = "invalid_request"


class OverLimitError(InvalidRequestError):
    """More than a limit of the API key ever lets through at once: waiting doesn't help."""

    code = "over_limit"
    limit_name: str = ""
    """Which one, where it was refused."""


class CancelledByOperatorError(InvalidRequestError):
    """An operator ended the generation: another route would be against their will."""

    code = "cancelled_by_operator"
    exit_code = exit_codes.EXIT_CANCELLED


class ContextExceededError(RequestError):
    """Prompt and answer together don't fit the model's context."""

    code = "context_exceeded"


class UnauthenticatedError(RequestError):
    """No credential, or one that doesn't verify. Says nothing about which ids exist."""

    code = "unauthenticated"
    status = 401
    exit_code = exit_codes.EXIT_AUTH


class KeyRevokedError(UnauthenticatedError):
    """The API key was revoked while a generation of it ran, which ends by that."""

    code = "key_revoked"


class WrongSecretError(UnauthenticatedError):
    """The join proof doesn't verify: another secret, or someone in between."""

    code = "wrong_secret"


class ForbiddenError(RequestError):
    """The credential is good, but not for this."""

    code = "forbidden"
    status = 403
    exit_code = exit_codes.EXIT_AUTH


class NotFoundError(RequestError):
    """There is no such thing (model, worker, file, key)."""

    code = "not_found"
    status = 404


class ConflictError(RequestError):
    """The thing exists already, or changed meanwhile."""

    code = "conflict"
    status = 409


class StaleEpochError(ConflictError):
    """The message belongs to an assignment or session that has been replaced."""

    code = "stale_epoch"


class InProgressError(ConflictError):
    """The same request is being carried out right now; its answer comes to who asks again."""

    code = "in_progress"


class PreconditionFailedError(ConflictError):
    """The thing isn't in the state that the caller named (If-Match)."""

    code = "precondition_failed"
    status = 412
    etag: str = ""
    """Of the state that it is in."""


class KeyReusedError(InvalidRequestError):
    """The Idempotency-Key stands for another request of the same caller."""

    code = "idempotency_key_reused"
    status = 422


class TooLargeError(RequestError):
    """More bytes than the limit; nothing was allocated for them."""

    code = "too_large"
    status = 413


class ClockSkewError(RequestError):
    """The two machines' clocks differ by more than credentials allow."""

    code = "clock_skew"
    exit_code = exit_codes.EXIT_CLOCK


class ProtocolVersionError(RequestError):
    """The two sides speak different protocol versions."""

    code = "protocol_version"
    status = 426
    exit_code = exit_codes.EXIT_VERSION


class ProtocolError(RequestError):
    """Bytes that are no frame or message of ours; the connection that sent them is closed."""

    code = "protocol_error"


class UntrustedFileError(RequestError):
    """A model file is malformed, lies about its sizes, or isn't what its hash says."""

    code = "bad_file"
    status = 422
    exit_code = exit_codes.EXIT_STORAGE


class CancelledByClientError(RequestError):
    """The client took the generation back."""

    code = "cancelled"
    status = 499
    exit_code = exit_codes.EXIT_CANCELLED


class ConfigError(RequestError):
    """A setting, option or environment variable can't be used; the program doesn't start."""

    code = "config"


class PortInUseError(ConfigError):
    """Another program listens on the wanted port."""

    code = "port_in_use"
    exit_code = exit_codes.EXIT_PORT


class ServiceError(BrigadeError):
    """Our fault or the machine's: the same request may succeed later."""


class InternalError(ServiceError):
    """A defect of ours. The details are in the log of the program that raised it, not in the message."""


class UnreachableError(ServiceError):
    """Nobody answers at that address, or not as a Brigade program does."""

    code = "unreachable"
    status = 502
    exit_code = exit_codes.EXIT_UNREACHABLE


class HopLostError(ServiceError):
    """A worker of the route went away in the middle of a generation."""

    code = "hop_lost"
    status = 502
    exit_code = exit_codes.EXIT_UNREACHABLE


class ModelUnavailableError(ServiceError):
    """The model isn't fully covered by ready workers; the message says which blocks are missing."""

    code = "model_unavailable"
    status = 503
    exit_code = exit_codes.EXIT_UNAVAILABLE


class ModelLoadingError(ModelUnavailableError):
    """The same, but every missing block is on its way to a worker: waiting helps."""

    code = "model_loading"


class ModelFaultError(ModelUnavailableError):
    """The model gives values that aren't finite: its weights are damaged. No worker's failure."""

    code = "model_fault"
    status = 500


class OverloadedError(ServiceError):
    """A bounded queue is full or a wait for memory ran out."""

    code = "overloaded"
    status = 503
    exit_code = exit_codes.EXIT_UNAVAILABLE


class QuotaExceededError(OverloadedError):
    """A limit of the API key is used up for now; the message says which, and `retry_after_s` exactly how long."""

    code = "quota_exceeded"
    status = 429
    exit_code = exit_codes.EXIT_QUOTA
    limit_name: str = ""
    """Which one, where it was refused."""
    rates: tuple[RateLeft, ...] = ()
    """What is left of all the key's rates."""


class DrainingError(ServiceError):
    """The program is stopping and takes nothing new."""

    code = "draining"
    status = 503
    exit_code = exit_codes.EXIT_UNAVAILABLE


class DeadlineExceededError(ServiceError):
    """The operation took longer than its deadline."""

    code = "deadline_exceeded"
    status = 504
    exit_code = exit_codes.EXIT_DEADLINE


class StorageError(ServiceError):
    """A disk is full, a folder can't be written, a database can't be used."""

    code = "storage"
    status = 507
    exit_code = exit_codes.EXIT_STORAGE
