"""Whose custody a key is in, by the endpoint that is asked."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from kmsjwks.backends.awskms.evidence import evidence_of
from kmsjwks.backends.awskms.metadata import key_metadata

VALIDATED = "AWS KMS HSMs, FIPS 140-3 Security Level 3"


def device(endpoint: str) -> str:
    said = {
        "Arn": "arn:aws:kms:eu-central-1:111122223333:key/1234",
        "KeyState": "Enabled",
        "KeySpec": "ECC_NIST_P256",
        "KeyUsage": "SIGN_VERIFY",
        "KeyManager": "CUSTOMER",
        "Origin": "AWS_KMS",
        "CreationDate": datetime(2026, 1, 1, tzinfo=UTC),
    }
    custody = evidence_of("ref", key_metadata({"KeyMetadata": said}), None, endpoint).custody
    assert custody["endpoint"] == endpoint
    return str(custody["device"])


@pytest.mark.parametrize(
    "host",
    [
        "kms.eu-central-1.amazonaws.com",
        "kms-fips.us-gov-west-1.amazonaws.com",
        "kms.eu-central-1.api.aws",
        "kms.cn-north-1.amazonaws.com.cn",
        "kms.cn-north-1.api.amazonwebservices.com.cn",
        "kms.eusc-de-east-1.amazonaws.eu",
        "kms.us-iso-east-1.c2s.ic.gov",
        "kms.us-isob-east-1.sc2s.sgov.gov",
        "kms.eu-isoe-west-1.cloud.adc-e.uk",
        "kms.us-isof-south-1.csp.hci.ic.gov",
        "vpce-0123456789abcdef0-abcdefgh.kms.eu-central-1.vpce.amazonaws.com",
        "vpce-0123456789abcdef0-abcdefgh-eu-central-1a.kms.eu-central-1.vpce.amazonaws.com",
    ],
)
def test_endpoints_of_aws(host: str) -> None:
    assert device(f"https://{host}") == VALIDATED


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:4566",
        "http://kms.eu-central-1.amazonaws.com",
        "https://kms.eu-central-1.amazonaws.com.example.com",
        "https://kms.eu-central-1.myamazonaws.com",
        "https://ec2-192-0-2-1.eu-central-1.compute.amazonaws.com",
        "https://kms-123.eu-central-1.elb.amazonaws.com",
        "https://localhost.localstack.cloud:4566",
    ],
)
def test_endpoints_of_anybody_else(endpoint: str) -> None:
    assert "no endpoint of AWS" in device(endpoint)
