"""Every error of the service, each with a stable ``code``. No HTTP in here."""

from __future__ import annotations

from collections.abc import Sequence


class KmsJwksError(Exception):
    """Root of all errors.

    ``str(error)`` is one or two sentences that say what happened and what to do next. It is
    shown to callers: it must hold neither secrets nor internals.
    """

    code = "internal"
    title = "Internal error"


class InvalidRequest(KmsJwksError):
    """The request is wrong whatever the state of the service."""

    code = "invalid-request"
    title = "Invalid request"


class MalformedJson(InvalidRequest):
    """The body is not I-JSON (RFC 7493): syntax, duplicate names, NaN, lone surrogates, depth."""

    code = "malformed-json"
    title = "Malformed JSON"


class ClaimRejected(InvalidRequest):
    """A claim or header parameter breaks the keyset's token rules."""

    code = "claim-rejected"
    title = "Claim rejected"

    def __init__(self, message: str, *, member: str) -> None:
        super().__init__(message)
        self.member = member


class RequestTooLarge(InvalidRequest):
    code = "request-too-large"
    title = "Request too large"


class UnsupportedMediaType(InvalidRequest):
    code = "unsupported-media-type"
    title = "Unsupported media type"


class Unauthenticated(KmsJwksError):
    """No credential, or (``presented``) one that is not known."""

    code = "unauthenticated"
    title = "Authentication required"

    def __init__(self, message: str, *, presented: bool) -> None:
        super().__init__(message)
        self.presented = presented


class Forbidden(KmsJwksError):
    """No grant allows this. Says nothing about whether the keyset exists."""

    code = "forbidden"
    title = "Forbidden"


class NotFound(KmsJwksError):
    code = "not-found"
    title = "Not found"


class KeysetNotFound(NotFound):
    code = "keyset-not-found"
    title = "Keyset not found"


class KeyNotKnown(NotFound):
    """No key of this kid is in the store."""

    code = "key-not-found"
    title = "Key not found"


class Conflict(KmsJwksError):
    """The request contradicts what is already there."""

    code = "conflict"
    title = "Conflict"


class TransitionRefused(Conflict):
    """A key state transition that NIST SP 800-57 (and `keys.TRANSITIONS`) does not allow."""

    code = "transition-refused"
    title = "Key state transition refused"


class Unavailable(KmsJwksError):
    """A part that is needed does not answer; the same request may succeed later.

    ``retry_after`` is in seconds.
    """

    code = "unavailable"
    title = "Temporarily unavailable"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreUnavailable(Unavailable):
    code = "store-unavailable"
    title = "Database unavailable"


class AuditUnavailable(Unavailable):
    """The audit record could not be made durable, so nothing was released."""

    code = "audit-unavailable"
    title = "Audit trail unavailable"


class PublicationFailed(Unavailable):
    """A document could not be written where it is published."""

    code = "publication-failed"
    title = "Publication failed"


class KeysetUnusable(Unavailable):
    """The keyset exists but has no key that may sign."""

    code = "keyset-unusable"
    title = "Keyset cannot sign"


class BackendError(KmsJwksError):
    """Whatever a backend raises; nothing else may leave one."""

    code = "backend-error"
    title = "Backend error"


class KeyNotFound(BackendError):
    """The backend holds no key of this reference."""

    code = "backend-key-not-found"
    title = "Key missing in the backend"


class UnsupportedAlgorithm(BackendError):
    code = "unsupported-algorithm"
    title = "Algorithm not supported by the backend"


class BackendUnavailable(BackendError, Unavailable):
    """Retryable: the device does not answer, or lost its sessions."""

    code = "backend-unavailable"
    title = "Backend unavailable"


class BackendDenied(BackendError):
    """The device refused us: wrong PIN, locked PIN, missing permission. Never retried."""

    code = "backend-denied"
    title = "Backend denied access"


class BackendProtocolError(BackendError):
    """The device answered, but with something that must not be used."""

    code = "backend-protocol-error"
    title = "Backend answered wrongly"


class ConfigurationError(KmsJwksError):
    """One or more mistakes in the configuration, all of them at once."""

    code = "configuration"
    title = "Configuration error"

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class PrivateMaterialRefused(KmsJwksError):
    """A document about to leave holds a private JWK member. Nothing is sent."""

    code = "private-material-refused"
    title = "Private key material refused"
