"""Error codes of AWS KMS, and the error that each becomes.

The "Errors" sections of the AWS KMS API Reference (Sign, CreateKey, DescribeKey,
ScheduleKeyDeletion, CreateAlias, ReplicateKey, TagResource) and its "Common Error Types".
"""

from __future__ import annotations

import re

from botocore.exceptions import ClientError

from kmsjwks.backends.awskms.sentences import (
    AlreadyExists,
    DryRunPassed,
    Refusal,
    Translation,
    bad_signature,
    credentials_rejected,
    credentials_unavailable,
    denied,
    disabled,
    error_of,
    invalid_arn,
    invalid_state,
    not_found,
    not_offered,
    our_mistake,
    quota_reached,
    session_expired,
    throttled,
    unavailable,
    unsigned,
    unsupported,
    validation,
)
from kmsjwks.domain.errors import (
    BackendDenied,
    BackendError,
    BackendProtocolError,
    CredentialsExpired,
    CredentialsMissing,
)

CODES: dict[str, Translation] = {
    **dict.fromkeys(
        (
            "ThrottlingException",
            "Throttling",
            "ThrottledException",
            "TooManyRequestsException",
            "RequestLimitExceeded",
            "RequestThrottled",
            "RequestThrottledException",
            "SlowDown",
        ),
        throttled,
    ),
    **dict.fromkeys(
        (
            "KMSInternalException",
            "DependencyTimeoutException",
            "InternalFailure",
            "InternalError",
            "InternalServerError",
            "ServiceUnavailable",
            "ServiceUnavailableException",
            "RequestTimeout",
            "RequestTimeoutException",
        ),
        unavailable,
    ),
    # Retryable, and about the Region by design: AWS KMS means its own HSMs by it.
    "KeyUnavailableException": unavailable,
    "KMSInvalidStateException": invalid_state,
    "DisabledException": disabled,
    "NotFoundException": not_found,
    "InvalidArnException": invalid_arn,
    "AccessDeniedException": denied,
    "AccessDenied": denied,
    "NotAuthorized": denied,
    "OptInRequired": error_of(BackendDenied, "Enable AWS KMS, or the Region, for this account."),
    "InvalidGrantTokenException": error_of(BackendDenied, "The grant is not valid."),
    "LimitExceededException": quota_reached,
    "UnsupportedOperationException": unsupported,
    "InvalidKeyUsageException": unsupported,
    "ValidationException": validation,
    "ValidationError": validation,
    "AlreadyExistsException": error_of(AlreadyExists, "It is there already."),
    "DryRunOperationException": error_of(
        DryRunPassed, "It was a dry run and would have succeeded."
    ),
    "InvalidAliasNameException": error_of(
        BackendProtocolError, "The alias is not valid: check the backend's installation."
    ),
    "MalformedPolicyDocumentException": error_of(
        BackendProtocolError, "The key policy is not valid, or would lock its administrators out."
    ),
    "TagException": error_of(BackendProtocolError, "A tag's name or value is not valid."),
    "InvalidMarkerException": error_of(BackendProtocolError, "The list changed; it is read anew."),
    "SerializationException": our_mistake,
    **dict.fromkeys(("UnknownOperationException", "UnknownOperation"), not_offered),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException"), session_expired),
    **dict.fromkeys(
        (
            "InvalidClientTokenId",
            "UnrecognizedClientException",
            "InvalidAccessKeyId",
            "InvalidIdentityToken",
            "AuthFailure",
        ),
        credentials_rejected,
    ),
    **dict.fromkeys(
        (
            "SignatureDoesNotMatch",
            "InvalidSignatureException",
            "IncompleteSignature",
            "IncompleteSignatureException",
            "RequestExpired",
            "RequestTimeTooSkewed",
        ),
        bad_signature,
    ),
    **dict.fromkeys(
        ("MissingAuthenticationToken", "MissingAuthenticationTokenException"), unsigned
    ),
}

# Operations that botocore's credential chain calls by itself, before ours.
_CHAIN = frozenset({"AssumeRole", "AssumeRoleWithWebIdentity", "AssumeRoleWithSAML"})
_CHAIN |= {"GetRoleCredentials", "CreateToken", "CreateOAuth2Token"}


def translate_answer(error: ClientError, doing: str, region: str, ref: str) -> BackendError:
    """As `failures.translate`, for an error that AWS answered."""
    refusal = _refusal(error, doing, region, ref)
    if refusal.operation in _CHAIN:
        return _role_refused(refusal)
    translation = CODES.get(refusal.code)
    if translation is throttled or refusal.status == 429:
        return throttled(refusal)
    if refusal.status == 501:  # not implemented (RFC 9110 section 15.6.2): it never will be
        return not_offered(refusal)
    if refusal.status >= 500:  # whatever it calls itself
        return unavailable(refusal)
    if translation is None:
        return BackendProtocolError(
            refusal.said("This was not expected; look the code up in the AWS KMS API Reference.")
        )
    return translation(refusal)


def _refusal(error: ClientError, doing: str, region: str, ref: str) -> Refusal:
    answer = error.response if isinstance(error.response, dict) else {}
    said, meta = answer.get("Error") or {}, answer.get("ResponseMetadata") or {}
    code = str(said.get("Code") or "unknown").rpartition("#")[2].partition(":")[0]
    status = meta.get("HTTPStatusCode")
    return Refusal(
        code=code if re.fullmatch(r"[A-Za-z0-9_.]{1,80}", code) else "unknown",
        message=re.sub(r"\s+", "", str(said.get("Message") or "")).lower(),
        status=status if isinstance(status, int) else 0,
        operation=str(error.operation_name),
        doing=doing,
        region=region,
        ref=ref,
        retry_after=_retry_after(meta.get("HTTPHeaders") or {}),
    )


def _retry_after(headers: dict[str, str]) -> float:
    """Seconds; AWS KMS sends none, a proxy or gateway in between may."""
    value = str(headers.get("retry-after", ""))
    return min(60.0, max(1.0, float(value))) if value.isdecimal() else 1.0


def _role_refused(refusal: Refusal) -> BackendError:
    passing = refusal.code == "IDPCommunicationError" or CODES.get(refusal.code) is throttled
    if passing or refusal.status >= 500:
        why = f"{refusal.operation}: {refusal.code}"
        return credentials_unavailable(refusal.region, refusal.doing, why)
    kind = CredentialsExpired if "Expired" in refusal.code else CredentialsMissing
    return kind(
        f"AWS did not hand out credentials: {refusal.operation} was refused ({refusal.code}). "
        "Check the role's trust policy, the identity token and the profile; it is tried again."
    )
