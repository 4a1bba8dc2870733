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


class NotGranted(Forbidden):
    """A grant covers the action, but not for a token with this claim or lifetime (``ttl``)."""

    code = "not-granted"

    def __init__(self, message: str, *, member: str) -> None:
        super().__init__(message)
        self.member = member


class QuotaExceeded(KmsJwksError):
    """The principal sent more requests than its quota allows. ``retry_after`` is in seconds."""

    code = "quota-exceeded"
    title = "Quota exceeded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


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


class ApprovalNotKnown(NotFound):
    """No proposal of this id is in the store."""

    code = "approval-not-found"
    title = "Proposal not found"


class Conflict(KmsJwksError):
    """The request contradicts what is already there."""

    code = "conflict"
    title = "Conflict"


class TransitionRefused(Conflict):
    """A key state transition that NIST SP 800-57 (and `keys.TRANSITIONS`) does not allow."""

    code = "transition-refused"
    title = "Key state transition refused"


class ApprovalRefused(Conflict):
    """A proposal that cannot be approved: by this person, any more, or for this key as it is."""

    code = "approval-refused"
    title = "Approval refused"


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


class BatchTimedOut(Unavailable):
    """An item of a batch had not got its signature when the time for the whole batch was over."""

    code = "batch-timed-out"
    title = "Batch took too long"


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


class BackendThrottled(BackendUnavailable):
    """More requests than the backend's quota allows. The backend itself is well."""

    code = "backend-throttled"
    title = "Backend quota used up"


class BackendDenied(BackendError):
    """The device refused us: wrong PIN, locked PIN, missing permission. Never retried."""

    code = "backend-denied"
    title = "Backend denied access"


class CredentialsMissing(BackendDenied):
    """There is nothing to authenticate to the backend with."""

    code = "backend-credentials-missing"
    title = "No credentials for the backend"


class CredentialsExpired(BackendDenied):
    """What we authenticated with is valid no more."""

    code = "backend-credentials-expired"
    title = "Credentials for the backend expired"


class WrongAccount(BackendDenied):
    """The key is another account's than the one that the credentials belong to."""

    code = "backend-wrong-account"
    title = "Key of another account"


class WrongRegion(BackendDenied):
    """The key is in a Region that is not configured."""

    code = "backend-wrong-region"
    title = "Key of another Region"


class KeyDisabled(BackendError):
    """The key is there, and somebody disabled it; enabling it again brings it back."""

    code = "backend-key-disabled"
    title = "Key disabled in the backend"


class KeyPendingDeletion(KeyNotFound):
    """The key waits for its deletion, which can still be cancelled; it serves nothing."""

    code = "backend-key-pending-deletion"
    title = "Key pending deletion in the backend"


class MessageTooLarge(BackendError, RequestTooLarge):
    """The backend takes no message of this length for this algorithm; it was not asked."""

    code = "message-too-large"
    title = "Message too large for the backend"


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
