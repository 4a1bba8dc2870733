"""botocore's exceptions -> what they mean for us."""

from __future__ import annotations

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from kmsjwks.backends.awskms.answers import translate_answer
from kmsjwks.backends.awskms.sentences import AlreadyExists, DryRunPassed, KeyNotReady
from kmsjwks.domain.errors import (
    BackendError,
    BackendProtocolError,
    BackendThrottled,
    BackendUnavailable,
    CredentialsMissing,
)

__all__ = [
    "AlreadyExists",
    "DryRunPassed",
    "KeyNotReady",
    "is_outage",
    "is_region_trouble",
    "translate",
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
_NO_ANSWER = (boto.ConnectionError, boto.HTTPClientError, ResponseParserError, OSError)


def translate(error: Exception, doing: str, *, region: str, ref: str = "") -> BackendError:
    """The typed error for what botocore raised while ``doing`` something (present participle) in
    ``region``, with the key ``ref`` where it is about one."""
    if isinstance(error, BackendError):
        return error
    if isinstance(error, boto.ClientError):
        return translate_answer(error, doing, region, ref)
    name = type(error).__name__
    # NoAuthToken, SSO, Login: by name where an older botocore does not have the class.
    if isinstance(error, _MISSING) or name.startswith("Login"):
        return _no_credentials(name)
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
    return isinstance(error, BackendUnavailable)


def is_outage(error: BackendError) -> bool:
    """It counts towards the Region's breaker: neither a quota nor one key's state."""
    return isinstance(error, BackendUnavailable) and not isinstance(
        error, BackendThrottled | KeyNotReady
    )


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
