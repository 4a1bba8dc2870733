"""botocore's exceptions -> what they mean for us."""

from __future__ import annotations

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from kmsjwks.backends.awskms.answers import translate_answer
from kmsjwks.backends.awskms.sentences import (
    AlreadyExists,
    CredentialsUnavailable,
    DryRunPassed,
    KeyNotReady,
    KeyStateForbids,
    NotOffered,
    OwnLimitReached,
    credentials_unavailable,
)
from kmsjwks.domain.errors import (
    BackendError,
    BackendProtocolError,
    BackendThrottled,
    BackendUnavailable,
    CredentialsMissing,
)

__all__ = [
    "AlreadyExists",
    "CredentialsUnavailable",
    "DryRunPassed",
    "KeyNotReady",
    "KeyStateForbids",
    "NotOffered",
    "OwnLimitReached",
    "is_outage",
    "is_region_trouble",
    "may_be_done",
    "translate",
    "translate_sts",
]

_MISSING = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    boto.ProfileNotFound,
    boto.ConfigParseError,
    boto.ConfigNotFound,
    boto.InvalidConfigError,
    boto.UnknownCredentialError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.RefreshWithMFAUnsupportedError,
    boto.SSOError,
)
# Raised before anything was sent.
_NOT_SENT = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError)
_NO_ANSWER = (boto.ConnectionError, boto.HTTPClientError, ResponseParserError, OSError)


def translate(
    error: Exception, doing: str, *, region: str, ref: str = "", kms_url: str | None = None
) -> BackendError:
    """The typed error for what botocore raised while ``doing`` something (present participle) in
    ``region``, with the key ``ref`` where it is about one.

    ``kms_url`` is where AWS KMS is asked: whatever else does not answer was to hand out
    credentials (AWS STS, AWS IAM Identity Center), which botocore asks within the same call.
    """
    if isinstance(error, BackendError):
        return error
    if isinstance(error, boto.ClientError):
        return translate_answer(error, doing, region, ref)
    name = type(error).__name__
    # NoAuthToken, SSO, Login: by name where an older botocore does not have the class.
    if isinstance(error, _MISSING) or name.startswith("Login"):
        return _no_credentials(name)
    if _is_elsewhere(error, kms_url):
        return credentials_unavailable(region, doing, name)
    return _without_answer(error, doing, region)


def translate_sts(error: Exception, doing: str, *, region: str) -> BackendError:
    """As ``translate``, where AWS STS is what was asked."""
    if isinstance(error, _NO_ANSWER):
        return CredentialsUnavailable(
            f"AWS STS did not answer while {doing} ({type(error).__name__}). Check that this "
            "machine reaches it in the backend's Region, or set sts_endpoint."
        )
    return translate(error, doing, region=region)


def _without_answer(error: Exception, doing: str, region: str) -> BackendError:
    name = type(error).__name__
    if isinstance(error, boto.SSLError):
        return BackendUnavailable(
            f"The TLS certificate of AWS KMS in {region} was not accepted while {doing}. Check "
            "endpoint, proxy, clock and CA bundle (AWS_CA_BUNDLE)."
        )
    if isinstance(error, _NO_ANSWER):
        return BackendUnavailable(
            f"AWS KMS in {region} did not answer while {doing} ({name}). It is tried again; check "
            "network, proxy and endpoint if it lasts."
        )
    return BackendProtocolError(
        f"AWS KMS in {region} could not be asked, or was not understood, while {doing} ({name})."
    )


def is_region_trouble(error: BackendError) -> bool:
    """The next Region may well do what this one did not."""
    return isinstance(error, BackendUnavailable) and not isinstance(
        error, CredentialsUnavailable | OwnLimitReached
    )


def is_outage(error: BackendError) -> bool:
    """It counts towards the Region's breaker: neither a quota, nor one key's state, nor the lack
    of credentials."""
    return isinstance(error, BackendUnavailable) and not isinstance(
        error, BackendThrottled | KeyNotReady | CredentialsUnavailable
    )


def may_be_done(error: BackendError) -> bool:
    """AWS KMS may have done what it was asked, and the answer was lost."""
    cause = error.__cause__
    return is_outage(error) and cause is not None and not isinstance(cause, _NOT_SENT)


def _is_elsewhere(error: Exception, kms_url: str | None) -> bool:
    url = getattr(error, "kwargs", {}).get("endpoint_url")
    return isinstance(url, str) and kms_url is not None and not url.startswith(kms_url)


def _no_credentials(name: str) -> CredentialsMissing:
    remedies: dict[str, str] = {
        "ProfileNotFound": "The backend's profile is not in the AWS configuration files.",
        "PartialCredentialsError": "Give access key and secret key both.",
    }
    default = (
        "Give the service a role (EKS, ECS, EC2), a profile, or credentials in its environment; "
        "a session of AWS IAM Identity Center is renewed with aws sso login."
    )
    return CredentialsMissing(
        f"There are no usable AWS credentials ({name}). {remedies.get(name, default)} They are "
        "looked for again every few seconds."
    )
