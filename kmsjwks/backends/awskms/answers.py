"""Error answers of AWS KMS -> what they mean for us.

Codes and their causes: the "Errors" sections of the AWS KMS API Reference (Sign, CreateKey,
DescribeKey, ScheduleKeyDeletion, CreateAlias, ReplicateKey, TagResource), and its "Common Error
Types". Only the code of an answer is quoted: its message names callers, policies and addresses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from botocore.exceptions import ClientError

from kmsjwks.domain.errors import (
    BackendDenied,
    BackendError,
    BackendProtocolError,
    BackendThrottled,
    BackendUnavailable,
    CredentialsExpired,
    CredentialsMissing,
    KeyDisabled,
    KeyNotFound,
    KeyPendingDeletion,
    UnsupportedAlgorithm,
    WrongRegion,
)


class AlreadyExists(BackendProtocolError):
    """The alias or replica to create is there already."""


class DryRunPassed(BackendProtocolError):
    """The call was a dry run (``DryRun``), and would have succeeded."""


class KeyNotReady(BackendUnavailable):
    """This key cannot be used in this Region now; the Region itself is well."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error answer, and what was asked: ``operation`` as in the API, ``doing`` in words."""

    code: str
    message: str
    status: int
    operation: str
    doing: str
    region: str
    ref: str
    retry_after: float

    @property
    def key(self) -> str:
        return f"The key {self.ref}" if self.ref else "The key"

    @property
    def where(self) -> str:
        return f"AWS KMS in {self.region}"

    def said(self, remedy: str) -> str:
        return f"{self.where} refused {self.doing} ({self.code}). {remedy}"


_Translation = Callable[[_Failure], BackendError]


def _as(kind: type[BackendError], remedy: str) -> _Translation:
    return lambda failure: kind(failure.said(remedy))


def _throttled(failure: _Failure) -> BackendError:
    return BackendThrottled(
        f"{failure.where} throttled {failure.doing} ({failure.code}): the account's request quota "
        "is used up. Lower requests_per_second of the backend, so that it holds for all processes "
        "together, or have the quota raised in Service Quotas.",
        retry_after=failure.retry_after,
    )


def _unavailable(failure: _Failure) -> BackendError:
    return BackendUnavailable(
        f"{failure.where} failed while {failure.doing} ({failure.code}). It is tried again; look "
        "at the AWS Health Dashboard if it lasts.",
        retry_after=failure.retry_after,
    )


def _not_ready(failure: _Failure) -> BackendError:
    return KeyNotReady(
        f"{failure.key} cannot be used in {failure.region} yet ({failure.code}). It is tried "
        "again; look at its key state if it lasts.",
        retry_after=failure.retry_after,
    )


def _not_found(failure: _Failure) -> BackendError:
    if _says(failure, "invalidarn") or _of_other_region(failure):
        return _invalid_arn(failure)
    return KeyNotFound(
        f"{failure.key} does not exist in {failure.region} ({failure.code}). Check the Region and "
        "the account; if its deletion was carried out, nothing brings it back."
    )


def _invalid_arn(failure: _Failure) -> BackendError:
    if _of_other_region(failure) or _says(failure, "region", "invalidarn"):
        return WrongRegion(
            f"{failure.key} is not a key of {failure.region} ({failure.code}). Make its Region "
            "the backend's region, or one of its replica_regions."
        )
    return BackendProtocolError(failure.said("The reference of the key is no ARN of AWS KMS."))


def _of_other_region(failure: _Failure) -> bool:
    parts = failure.ref.split(":")  # arn:partition:kms:region:account:key/id
    return len(parts) == 6 and parts[3] != failure.region


def _disabled(failure: _Failure) -> BackendError:
    return KeyDisabled(
        f"{failure.key} is disabled in {failure.region} ({failure.code}). Find out who disabled "
        "it and why, then enable it (kms:EnableKey)."
    )


def _pending_deletion(failure: _Failure) -> BackendError:
    return KeyPendingDeletion(
        f"{failure.key} is scheduled for deletion in {failure.region} ({failure.code}). If that "
        "was not meant, cancel it (kms:CancelKeyDeletion) and enable the key before the waiting "
        "period ends."
    )


# By the key state that the message names, without spaces: "is pending deletion" and
# "PendingDeletion" alike. The order counts.
_KEY_STATES: tuple[tuple[str, _Translation], ...] = (
    ("notpendingdeletion", _as(BackendProtocolError, "The key is not scheduled for deletion.")),
    ("pendingdeletion", _pending_deletion),
    ("pendingreplicadeletion", _pending_deletion),
    ("disabled", _disabled),
    ("creating", _not_ready),
    ("updating", _not_ready),
    ("unavailable", _not_ready),
)


def _invalid_state(failure: _Failure) -> BackendError:
    for state, translation in _KEY_STATES:
        if _says(failure, state):
            return translation(failure)
    return BackendProtocolError(
        failure.said("The key's state forbids it: look at it with aws kms describe-key.")
    )


_DENIED_BECAUSE = {
    "explicitdeny": "a policy denies it explicitly; look also at service control policies",
    "noresource-basedpolicy": "the key policy does not allow it",
    "noidentity-basedpolicy": "no IAM policy of these credentials allows it",
    "novpcendpointpolicy": "the VPC endpoint's policy does not allow it",
    "noservicecontrolpolicy": "a service control policy does not allow it",
    "nopermissionsboundary": "the permissions boundary does not allow it",
    "nosessionpolicy": "the session policy does not allow it",
}


def _denied(failure: _Failure) -> BackendError:
    because = [words for mark, words in _DENIED_BECAUSE.items() if _says(failure, mark)]
    resource = f" on {failure.ref}" if failure.ref else ""
    service = "sts" if failure.operation == "GetCallerIdentity" else "kms"
    return BackendDenied(
        f"{failure.where} denied {failure.doing} ({failure.code}). Allow "
        f"{service}:{failure.operation}{resource} to the service's credentials, in their IAM "
        f"policy and in the key policy{': ' if because else ''}{'; '.join(because)}."
    )


def _validation(failure: _Failure) -> BackendError:
    if _says(failure, "keyspec", "signingalgorithm", "customermasterkeyspec", "messagetype"):
        return _unsupported(failure)
    return BackendProtocolError(failure.said("It does not take what we asked; report this."))


_unsupported = _as(
    UnsupportedAlgorithm,
    "This Region or endpoint does not offer the algorithm, or the key is of another kind; choose "
    "another algorithm or Region.",
)
_expired = _as(
    CredentialsExpired,
    "The session of these AWS credentials is over. Roles and profiles are read again by "
    "themselves; credentials from the environment need new ones and a restart.",
)
_rejected = _as(
    CredentialsExpired,
    "AWS does not know these credentials: the access key was deleted, deactivated or mistyped, or "
    "the Region is not enabled for the account. Check them with aws sts get-caller-identity.",
)
_bad_signature = _as(
    CredentialsExpired,
    "The request's signature does not hold: the secret access key is wrong, or this machine's "
    "clock is off by minutes. Check the clock first.",
)
_unsigned = _as(CredentialsMissing, "The request carried no credentials. Give the service some.")
_quota = _as(
    BackendDenied,
    "A resource quota (keys, aliases, tags) is reached, and waiting does not help: delete what is "
    "not needed, or have it raised in Service Quotas.",
)
_ours = _as(BackendProtocolError, "The request was not what it takes; report this.")

CODES: dict[str, _Translation] = {
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
        _throttled,
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
        _unavailable,
    ),
    # Retryable, and about the Region by design: AWS KMS means its own HSMs by it.
    "KeyUnavailableException": _unavailable,
    "KMSInvalidStateException": _invalid_state,
    "DisabledException": _disabled,
    "NotFoundException": _not_found,
    "InvalidArnException": _invalid_arn,
    "AccessDeniedException": _denied,
    "AccessDenied": _denied,
    "NotAuthorized": _denied,
    "OptInRequired": _as(BackendDenied, "Enable AWS KMS, or the Region, for this account."),
    "InvalidGrantTokenException": _as(BackendDenied, "The grant is not valid."),
    "LimitExceededException": _quota,
    "UnsupportedOperationException": _unsupported,
    "InvalidKeyUsageException": _unsupported,
    "ValidationException": _validation,
    "ValidationError": _validation,
    "AlreadyExistsException": _as(AlreadyExists, "It is there already."),
    "DryRunOperationException": _as(DryRunPassed, "It was a dry run and would have succeeded."),
    "InvalidAliasNameException": _as(
        BackendProtocolError, "The alias is not valid: check the backend's installation."
    ),
    "MalformedPolicyDocumentException": _as(
        BackendProtocolError, "The key policy is not valid, or would lock its administrators out."
    ),
    "TagException": _as(BackendProtocolError, "A tag's name or value is not valid."),
    "InvalidMarkerException": _as(BackendProtocolError, "The list changed; it is read anew."),
    "SerializationException": _ours,
    "UnknownOperationException": _as(
        BackendProtocolError, "The endpoint does not offer this operation; check endpoint."
    ),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException"), _expired),
    **dict.fromkeys(
        (
            "InvalidClientTokenId",
            "UnrecognizedClientException",
            "InvalidAccessKeyId",
            "InvalidIdentityToken",
            "AuthFailure",
        ),
        _rejected,
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
        _bad_signature,
    ),
    **dict.fromkeys(
        ("MissingAuthenticationToken", "MissingAuthenticationTokenException"), _unsigned
    ),
}

# Operations that botocore's credential chain calls by itself, before ours.
_CHAIN = frozenset({"AssumeRole", "AssumeRoleWithWebIdentity", "AssumeRoleWithSAML"})
_CHAIN |= {"GetRoleCredentials", "CreateToken", "CreateOAuth2Token"}


def translate_answer(error: ClientError, doing: str, region: str, ref: str) -> BackendError:
    """As `failures.translate`, for an error that AWS answered."""
    failure = _failure(error, doing, region, ref)
    if failure.operation in _CHAIN:
        return _role_refused(failure)
    translation = CODES.get(failure.code)
    if translation is _throttled or failure.status == 429:
        return _throttled(failure)
    if failure.status >= 500:  # whatever it calls itself
        return _unavailable(failure)
    if translation is None:
        return BackendProtocolError(
            failure.said("This was not expected; look the code up in the AWS KMS API Reference.")
        )
    return translation(failure)


def _failure(error: ClientError, doing: str, region: str, ref: str) -> _Failure:
    answer = error.response if isinstance(error.response, dict) else {}
    said, meta = answer.get("Error") or {}, answer.get("ResponseMetadata") or {}
    code = str(said.get("Code") or "unknown").rpartition("#")[2].partition(":")[0]
    status = meta.get("HTTPStatusCode")
    return _Failure(
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


def _role_refused(failure: _Failure) -> BackendError:
    if failure.status >= 500 or CODES.get(failure.code) is _throttled:
        return _unavailable(failure)
    kind = CredentialsExpired if "Expired" in failure.code else CredentialsMissing
    return kind(
        f"AWS did not hand out credentials: {failure.operation} was refused ({failure.code}). "
        "Check the role's trust policy, the identity token and the profile; it is tried again."
    )


def _says(failure: _Failure, *marks: str) -> bool:
    return any(mark in failure.message for mark in marks)
