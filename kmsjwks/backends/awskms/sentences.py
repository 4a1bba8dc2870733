"""What an error answer of AWS KMS means, in sentences an operator can act on.

Only the code of an answer is quoted: its message names callers, policies and addresses. Of a caller
no more is said than the account.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

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
    WrongAccount,
    WrongRegion,
)


class AlreadyExists(BackendProtocolError):
    """The alias or replica to create is there already."""


class DryRunPassed(BackendProtocolError):
    """The call was a dry run (``DryRun``), and would have succeeded."""


class NotOffered(BackendProtocolError):
    """The endpoint does not have the operation. AWS KMS has all that are called."""


class KeyNotReady(BackendUnavailable):
    """This key cannot be used in this Region now; the Region itself is well."""


class KeyStateForbids(BackendProtocolError):
    """The key's state forbids it, and the answer does not say which state it is in."""


class CredentialsUnavailable(BackendUnavailable):
    """Credentials cannot be had just now, so AWS KMS was not asked; it says nothing about it."""


class OwnLimitReached(BackendThrottled):
    """Our own limit, not AWS's: another Region is no way round it."""


@dataclass(frozen=True, slots=True)
class Refusal:
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


Translation = Callable[[Refusal], BackendError]


def error_of(kind: type[BackendError], remedy: str) -> Translation:
    return lambda refusal: kind(refusal.said(remedy))


def throttled(refusal: Refusal) -> BackendError:
    return BackendThrottled(
        f"{refusal.where} throttled {refusal.doing} ({refusal.code}): the account's request quota "
        "is used up. Lower requests_per_second of the backend, so that it holds for all processes "
        "together, or have the quota raised in Service Quotas.",
        retry_after=refusal.retry_after,
    )


def not_offered(refusal: Refusal) -> BackendError:
    return NotOffered(
        f"{refusal.where}: this endpoint does not offer {refusal.operation} ({refusal.code}), so "
        f"{refusal.doing} is not possible there. Check endpoint, or use one that offers it."
    )


def credentials_unavailable(region: str, doing: str, why: str) -> BackendError:
    return CredentialsUnavailable(
        f"AWS KMS in {region} was not asked while {doing}: no AWS credentials could be had "
        f"({why}). It is tried again; check that this machine reaches AWS STS, or whatever hands "
        "out its credentials, if it lasts."
    )


def unavailable(refusal: Refusal) -> BackendError:
    return BackendUnavailable(
        f"{refusal.where} failed while {refusal.doing} ({refusal.code}). It is tried again; look "
        "at the AWS Health Dashboard if it lasts.",
        retry_after=refusal.retry_after,
    )


def _not_ready(refusal: Refusal) -> BackendError:
    return KeyNotReady(
        f"{refusal.key} cannot be used in {refusal.region} yet ({refusal.code}). It is tried "
        "again; look at its key state if it lasts.",
        retry_after=refusal.retry_after,
    )


def not_found(refusal: Refusal) -> BackendError:
    if _says(refusal, "invalidarn") or _of_other_region(refusal):
        return invalid_arn(refusal)
    return KeyNotFound(
        f"{refusal.key} does not exist in {refusal.region} ({refusal.code}). Check the Region and "
        "the account; if its deletion was carried out, nothing brings it back."
    )


def invalid_arn(refusal: Refusal) -> BackendError:
    if _of_other_region(refusal) or _says(refusal, "region", "invalidarn"):
        return WrongRegion(
            f"{refusal.key} is not a key of {refusal.region} ({refusal.code}). Make its Region "
            "the backend's region, or one of its replica_regions."
        )
    return BackendProtocolError(refusal.said("The reference of the key is no ARN of AWS KMS."))


def _of_other_region(refusal: Refusal) -> bool:
    parts = refusal.ref.split(":")  # arn:partition:kms:region:account:key/id
    return len(parts) == 6 and parts[3] != refusal.region


def disabled(refusal: Refusal) -> BackendError:
    """DisabledException. AWS KMS may say it of a key pending deletion too (Developer Guide, "Key
    states of AWS KMS keys"), which takes another way back."""
    doomed = _says(refusal, "pendingdeletion", "pendingreplicadeletion")
    return _pending_deletion(refusal) if doomed else _disabled(refusal)


def _disabled(refusal: Refusal) -> BackendError:
    return KeyDisabled(
        f"{refusal.key} is disabled in {refusal.region} ({refusal.code}). Find out who disabled "
        "it and why, then enable it (kms:EnableKey)."
    )


def _pending_deletion(refusal: Refusal) -> BackendError:
    return KeyPendingDeletion(
        f"{refusal.key} is scheduled for deletion in {refusal.region} ({refusal.code}). If that "
        "was not meant, cancel it (kms:CancelKeyDeletion) and enable the key before the waiting "
        "period ends."
    )


# By the key state that the message names, without spaces: "is pending deletion" and
# "PendingDeletion" alike. The order counts.
_KEY_STATES: tuple[tuple[str, Translation], ...] = (
    (
        "notpendingdeletion",
        error_of(BackendProtocolError, "The key is not scheduled for deletion."),
    ),
    ("pendingdeletion", _pending_deletion),
    ("pendingreplicadeletion", _pending_deletion),
    ("disabled", _disabled),
    ("creating", _not_ready),
    ("updating", _not_ready),
    ("unavailable", _not_ready),
)


def invalid_state(refusal: Refusal) -> BackendError:
    for state, translation in _KEY_STATES:
        if _says(refusal, state):
            return translation(refusal)
    return KeyStateForbids(
        refusal.said("The key's state forbids it: look at it with aws kms describe-key.")
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


_CALLER = re.compile(r"user:arn:[a-z-]+:(?:sts|iam)::([0-9]{12}):")


def denied(refusal: Refusal) -> BackendError:
    """AWS says of another account's key what it says of a missing permission; who was denied is in
    its message ("Troubleshoot access denied error messages", IAM User Guide)."""
    caller, owner = _CALLER.match(refusal.message), _account_of(refusal.ref)
    if caller is not None and owner not in ("", caller[1]):
        return WrongAccount(
            f"{refusal.where} denied {refusal.doing} ({refusal.code}): the credentials belong to "
            f"the account {caller[1]}, and the key {refusal.ref} to {owner}. Use credentials of "
            "that account; only if another account's are meant, allow "
            f"kms:{refusal.operation} to them in the key policy."
        )
    return _without_permission(refusal)


def _account_of(ref: str) -> str:
    parts = ref.split(":")  # arn:partition:kms:region:account:key/id
    return parts[4] if len(parts) == 6 else ""


def _without_permission(refusal: Refusal) -> BackendError:
    because = [words for mark, words in _DENIED_BECAUSE.items() if _says(refusal, mark)]
    resource = f" on {refusal.ref}" if refusal.ref else ""
    service = "sts" if refusal.operation == "GetCallerIdentity" else "kms"
    return BackendDenied(
        f"{refusal.where} denied {refusal.doing} ({refusal.code}). Allow "
        f"{service}:{refusal.operation}{resource} to the service's credentials, in their IAM "
        f"policy and in the key policy{': ' if because else ''}{'; '.join(because)}."
    )


def validation(refusal: Refusal) -> BackendError:
    if _says(refusal, "keyspec", "signingalgorithm", "customermasterkeyspec", "messagetype"):
        return unsupported(refusal)
    return BackendProtocolError(refusal.said("It does not take what we asked; report this."))


unsupported = error_of(
    UnsupportedAlgorithm,
    "This Region or endpoint does not offer the algorithm, or the key is of another kind; choose "
    "another algorithm or Region.",
)
session_expired = error_of(
    CredentialsExpired,
    "The session of these AWS credentials is over. Roles and profiles are read again by "
    "themselves; credentials from the environment need new ones and a restart.",
)
credentials_rejected = error_of(
    CredentialsExpired,
    "AWS does not know these credentials: the access key was deleted, deactivated or mistyped, or "
    "the Region is not enabled for the account. Check them with aws sts get-caller-identity.",
)
bad_signature = error_of(
    CredentialsExpired,
    "The request's signature does not hold: the secret access key is wrong, or this machine's "
    "clock is off by minutes. Check the clock first.",
)
unsigned = error_of(
    CredentialsMissing, "The request carried no credentials. Give the service some."
)
quota_reached = error_of(
    BackendDenied,
    "A resource quota (keys, aliases, tags) is reached, and waiting does not help: delete what is "
    "not needed, or have it raised in Service Quotas.",
)
our_mistake = error_of(BackendProtocolError, "The request was not what it takes; report this.")


def _says(refusal: Refusal, *marks: str) -> bool:
    return any(mark in refusal.message for mark in marks)
