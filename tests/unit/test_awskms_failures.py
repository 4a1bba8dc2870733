"""Each error of botocore and AWS KMS becomes one of ours, with a sentence of its own."""

from __future__ import annotations

import pytest
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from kmsjwks.backends.awskms.answers import CODES
from kmsjwks.backends.awskms.failures import (
    AlreadyExists,
    CredentialsUnavailable,
    DryRunPassed,
    KeyNotReady,
    KeyStateForbids,
    NotOffered,
    OwnLimitReached,
    is_outage,
    is_region_trouble,
    may_be_done,
    translate,
)
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

REGION = "eu-central-1"
ARN = f"arn:aws:kms:{REGION}:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def answer(
    code: str,
    message: str = "",
    *,
    status: int = 400,
    operation: str = "Sign",
    headers: dict[str, str] | None = None,
) -> boto.ClientError:
    return boto.ClientError(
        {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {
                "HTTPStatusCode": status,
                "HTTPHeaders": headers or {},
                "RequestId": "b9d2f4a0",
                "HostId": "",
                "RetryAttempts": 0,
            },
        },
        operation,
    )


def translated(error: Exception, ref: str = ARN) -> BackendError:
    return translate(error, "signing", region=REGION, ref=ref)


# The class, and what the sentence must tell the operator.
ROWS: dict[str, tuple[type[BackendError], str]] = {
    "ThrottlingException": (BackendThrottled, "Service Quotas"),
    "Throttling": (BackendThrottled, "Service Quotas"),
    "ThrottledException": (BackendThrottled, "Service Quotas"),
    "TooManyRequestsException": (BackendThrottled, "Service Quotas"),
    "RequestLimitExceeded": (BackendThrottled, "Service Quotas"),
    "RequestThrottled": (BackendThrottled, "Service Quotas"),
    "RequestThrottledException": (BackendThrottled, "Service Quotas"),
    "SlowDown": (BackendThrottled, "Service Quotas"),
    "KMSInternalException": (BackendUnavailable, "tried again"),
    "DependencyTimeoutException": (BackendUnavailable, "tried again"),
    "KeyUnavailableException": (BackendUnavailable, "tried again"),
    "InternalFailure": (BackendUnavailable, "tried again"),
    "InternalError": (BackendUnavailable, "tried again"),
    "InternalServerError": (BackendUnavailable, "tried again"),
    "ServiceUnavailable": (BackendUnavailable, "tried again"),
    "ServiceUnavailableException": (BackendUnavailable, "tried again"),
    "RequestTimeout": (BackendUnavailable, "tried again"),
    "RequestTimeoutException": (BackendUnavailable, "tried again"),
    "KMSInvalidStateException": (KeyStateForbids, "describe-key"),
    "DisabledException": (KeyDisabled, "kms:EnableKey"),
    "NotFoundException": (KeyNotFound, "does not exist"),
    "InvalidArnException": (BackendProtocolError, "no ARN"),
    "AccessDeniedException": (BackendDenied, f"kms:Sign on {ARN}"),
    "AccessDenied": (BackendDenied, f"kms:Sign on {ARN}"),
    "NotAuthorized": (BackendDenied, f"kms:Sign on {ARN}"),
    "OptInRequired": (BackendDenied, "Enable AWS KMS"),
    "InvalidGrantTokenException": (BackendDenied, "grant"),
    "LimitExceededException": (BackendDenied, "resource quota"),
    "UnsupportedOperationException": (UnsupportedAlgorithm, "another algorithm"),
    "InvalidKeyUsageException": (UnsupportedAlgorithm, "another algorithm"),
    "ValidationException": (BackendProtocolError, "report this"),
    "ValidationError": (BackendProtocolError, "report this"),
    "AlreadyExistsException": (AlreadyExists, "already"),
    "DryRunOperationException": (DryRunPassed, "would have succeeded"),
    "InvalidAliasNameException": (BackendProtocolError, "installation"),
    "MalformedPolicyDocumentException": (BackendProtocolError, "key policy"),
    "TagException": (BackendProtocolError, "tag"),
    "InvalidMarkerException": (BackendProtocolError, "list"),
    "SerializationException": (BackendProtocolError, "report this"),
    "UnknownOperationException": (NotOffered, "endpoint"),
    "UnknownOperation": (NotOffered, "endpoint"),
    "ExpiredToken": (CredentialsExpired, "restart"),
    "ExpiredTokenException": (CredentialsExpired, "restart"),
    "InvalidClientTokenId": (CredentialsExpired, "get-caller-identity"),
    "UnrecognizedClientException": (CredentialsExpired, "get-caller-identity"),
    "InvalidAccessKeyId": (CredentialsExpired, "get-caller-identity"),
    "InvalidIdentityToken": (CredentialsExpired, "get-caller-identity"),
    "AuthFailure": (CredentialsExpired, "get-caller-identity"),
    "SignatureDoesNotMatch": (CredentialsExpired, "clock"),
    "InvalidSignatureException": (CredentialsExpired, "clock"),
    "IncompleteSignature": (CredentialsExpired, "clock"),
    "IncompleteSignatureException": (CredentialsExpired, "clock"),
    "RequestExpired": (CredentialsExpired, "clock"),
    "RequestTimeTooSkewed": (CredentialsExpired, "clock"),
    "MissingAuthenticationToken": (CredentialsMissing, "Give the service"),
    "MissingAuthenticationTokenException": (CredentialsMissing, "Give the service"),
}


def test_every_code_that_is_told_apart_has_its_row() -> None:
    assert set(ROWS) == set(CODES)


@pytest.mark.parametrize("code", ROWS)
def test_a_code_becomes_a_class_and_a_sentence(code: str) -> None:
    kind, remedy = ROWS[code]
    error = translated(answer(code))
    assert type(error) is kind
    assert remedy in str(error)
    assert code in str(error)
    assert "b9d2f4a0" not in str(error)


@pytest.mark.parametrize("code", ["AccessDeniedException", "NotFoundException", "Whatever"])
def test_a_5xx_is_an_outage_whatever_it_calls_itself(code: str) -> None:
    assert type(translated(answer(code, status=503))) is BackendUnavailable


def test_a_throttling_503_and_a_plain_429_are_throttling() -> None:
    assert type(translated(answer("ThrottlingException", status=503))) is BackendThrottled
    error = translated(answer("429", status=429, headers={"retry-after": "7"}))
    assert isinstance(error, BackendThrottled)
    assert error.retry_after == 7


def test_a_code_that_nobody_knows_is_a_protocol_error() -> None:
    error = translated(answer("NewException", "with secrets in it"))
    assert type(error) is BackendProtocolError
    assert "NewException" in str(error)
    assert "secrets" not in str(error)
    assert "unknown" in str(translated(answer("<script>")))


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (f"{ARN} is pending deletion.", KeyPendingDeletion),
        ("The key state is PendingDeletion", KeyPendingDeletion),
        (f"{ARN} is pending replica deletion.", KeyPendingDeletion),
        ("key state PendingReplicaDeletion", KeyPendingDeletion),
        (f"{ARN} is not pending deletion.", BackendProtocolError),
        (f"{ARN} is disabled.", KeyDisabled),
        (f"{ARN} is Creating", KeyNotReady),
        (f"{ARN} is updating.", KeyNotReady),
        (f"{ARN} is unavailable.", KeyNotReady),
        (f"{ARN} is pending import.", KeyStateForbids),
    ],
)
def test_key_states_are_told_apart(message: str, kind: type[BackendError]) -> None:
    error = translated(answer("KMSInvalidStateException", message))
    assert type(error) is kind


@pytest.mark.parametrize("message", [f"{ARN} is pending deletion.", f"{ARN} is PendingDeletion"])
def test_a_doomed_key_may_be_called_disabled(message: str) -> None:
    """The key-state table of the AWS KMS Developer Guide allows both codes for it."""
    error = translated(answer("DisabledException", message))
    assert type(error) is KeyPendingDeletion
    assert "kms:CancelKeyDeletion" in str(error)


def test_a_disabled_and_a_doomed_key_name_the_key_and_the_way_back() -> None:
    doomed = translated(answer("KMSInvalidStateException", f"{ARN} is pending deletion."))
    assert ARN in str(doomed)
    assert "kms:CancelKeyDeletion" in str(doomed)
    assert ARN in str(translated(answer("DisabledException")))


def test_a_key_of_another_region_is_not_a_missing_key() -> None:
    elsewhere = ARN.replace(REGION, "us-east-1")
    for code in ("NotFoundException", "InvalidArnException"):
        error = translated(answer(code), elsewhere)
        assert type(error) is WrongRegion
        assert "replica_regions" in str(error)
    assert type(translated(answer("NotFoundException", "Invalid arn us-east-1"))) is WrongRegion


def denial(caller: str) -> BackendError:
    user = f"arn:aws:sts::{caller}:assumed-role/signer/i-0b9d2f4a0"
    said = f"User: {user} is not authorized to perform: kms:Sign on resource: {ARN} because no"
    return translated(answer("AccessDeniedException", f"{said} resource-based policy allows it"))


def test_a_key_of_another_account_is_not_a_missing_permission() -> None:
    error = denial("444455556666")
    assert type(error) is WrongAccount
    for words in ("belong to the account 444455556666", ARN, "to 111122223333"):
        assert words in str(error)
    assert "b9d2f4a0" not in str(error)
    assert type(denial("111122223333")) is BackendDenied


@pytest.mark.parametrize(
    ("because", "words"),
    [
        ("no resource-based policy allows the kms:Sign action", "key policy does not allow"),
        ("no identity-based policy allows the kms:Sign action", "no IAM policy"),
        ("with an explicit deny in a service control policy", "service control policies"),
        ("no VPC endpoint policy allows the kms:Sign action", "VPC endpoint"),
    ],
)
def test_a_denial_names_the_permission_and_its_cause(because: str, words: str) -> None:
    said = f"User: arn:aws:sts::111122223333:assumed-role/x/y is not authorized because {because}"
    error = translated(answer("AccessDeniedException", said, operation="ScheduleKeyDeletion"))
    assert f"kms:ScheduleKeyDeletion on {ARN}" in str(error)
    assert words in str(error)
    assert "assumed-role" not in str(error)


def test_a_spec_that_is_not_offered_is_an_unsupported_algorithm() -> None:
    said = "1 validation error detected: Value 'ML_DSA_44' at 'keySpec' failed to satisfy"
    error = translated(answer("ValidationException", said, operation="CreateKey"), "")
    assert type(error) is UnsupportedAlgorithm


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("InvalidIdentityToken", 400, CredentialsMissing),
        ("AccessDenied", 403, CredentialsMissing),
        ("ExpiredTokenException", 400, CredentialsExpired),
        ("IDPCommunicationError", 400, CredentialsUnavailable),
        ("InternalFailure", 500, CredentialsUnavailable),
        ("Throttling", 400, CredentialsUnavailable),
    ],
)
def test_a_role_that_is_not_handed_out_is_about_credentials(
    code: str, status: int, kind: type[BackendError]
) -> None:
    error = translated(answer(code, status=status, operation="AssumeRoleWithWebIdentity"))
    assert type(error) is kind


LOCAL: list[tuple[Exception, type[BackendError], str]] = [
    (boto.NoCredentialsError(), CredentialsMissing, "looked for again"),
    (boto.PartialCredentialsError(provider="env", cred_var="x"), CredentialsMissing, "both"),
    (boto.ProfileNotFound(profile="signer"), CredentialsMissing, "profile"),
    (boto.CredentialRetrievalError(provider="p", error_msg="hunter2"), CredentialsMissing, "role"),
    (boto.MetadataRetrievalError(error_msg="hunter2"), CredentialsMissing, "role"),
    (boto.UnauthorizedSSOTokenError(), CredentialsMissing, "aws sso login"),
    (boto.SSOTokenLoadError(error_msg="hunter2"), CredentialsMissing, "aws sso login"),
    (boto.TokenRetrievalError(provider="sso", error_msg="x"), CredentialsMissing, "sso login"),
    (boto.ConnectTimeoutError(endpoint_url="u"), BackendUnavailable, "network"),
    (boto.ReadTimeoutError(endpoint_url="u"), BackendUnavailable, "network"),
    (boto.EndpointConnectionError(endpoint_url="u"), BackendUnavailable, "network"),
    (boto.ConnectionClosedError(endpoint_url="u"), BackendUnavailable, "network"),
    (boto.ProxyConnectionError(proxy_url="http://me:hunter2@p"), BackendUnavailable, "proxy"),
    (boto.SSLError(endpoint_url="u", error="e"), BackendUnavailable, "AWS_CA_BUNDLE"),
    (boto.HTTPClientError(error="e"), BackendUnavailable, "network"),
    (ResponseParserError("hunter2"), BackendUnavailable, "did not answer"),
    (ConnectionResetError(), BackendUnavailable, "network"),
    (boto.ParamValidationError(report="hunter2"), BackendProtocolError, "could not be asked"),
    (KeyError("hunter2"), BackendProtocolError, "not understood"),
]


@pytest.mark.parametrize(
    ("error", "kind", "words"), LOCAL, ids=[type(row[0]).__name__ for row in LOCAL]
)
def test_what_botocore_raises_by_itself(
    error: Exception, kind: type[BackendError], words: str
) -> None:
    ours = translated(error)
    assert type(ours) is kind
    assert words in str(ours)
    assert "hunter2" not in str(ours)


def test_ours_stay_ours() -> None:
    ours = KeyNotFound("x")
    assert translated(ours) is ours


def test_only_outages_count_and_only_trouble_moves_to_the_next_region() -> None:
    def judged(error: Exception) -> tuple[bool, bool]:
        ours = translated(error)
        return is_region_trouble(ours), is_outage(ours)

    assert judged(boto.ReadTimeoutError(endpoint_url="u")) == (True, True)
    assert judged(answer("KMSInternalException", status=500)) == (True, True)
    assert judged(answer("ThrottlingException")) == (True, False)
    assert judged(answer("KMSInvalidStateException", "is creating")) == (True, False)
    for code in ("DisabledException", "NotFoundException", "AccessDeniedException", "ExpiredToken"):
        assert judged(answer(code)) == (False, False)


def test_what_is_not_implemented_is_no_outage() -> None:
    error = translated(answer("NotImplemented", status=501, operation="DisableKey"))
    assert type(error) is NotOffered
    assert "does not offer DisableKey" in str(error)


@pytest.mark.parametrize(
    "kind", [boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ReadTimeoutError]
)
def test_what_hands_out_credentials_is_not_aws_kms(kind: type[boto.HTTPClientError]) -> None:
    kms = f"https://kms.{REGION}.amazonaws.com"
    for url, expected in (
        (f"{kms}/", BackendUnavailable),
        (f"https://sts.{REGION}.amazonaws.com/", CredentialsUnavailable),
    ):
        error = translate(kind(endpoint_url=url, error="x"), "signing", region=REGION, kms_url=kms)
        assert type(error) is expected
        assert is_outage(error) is is_region_trouble(error) is (expected is BackendUnavailable)


def test_our_own_limit_is_the_same_everywhere() -> None:
    assert not is_region_trouble(OwnLimitReached("x"))
    assert is_region_trouble(BackendThrottled("x"))


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (boto.ReadTimeoutError(endpoint_url="https://x"), True),
        (boto.ConnectionClosedError(endpoint_url="https://x"), True),
        (boto.EndpointConnectionError(endpoint_url="https://x"), False),
        (boto.ConnectTimeoutError(endpoint_url="https://x"), False),
        (answer("KMSInternalException", status=500), True),
        (answer("AccessDeniedException"), False),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_may_be_done_although_it_failed(cause: Exception, expected: bool) -> None:
    error = translated(cause)
    error.__cause__ = cause
    assert may_be_done(error) is expected
