"""The AWS KMS backend on an endpoint of the tests."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

from kmsjwks.backends.awskms.backend import KmsBackend
from kmsjwks.backends.awskms.patience import Patience
from kmsjwks.backends.awskms.regions import Regions
from kmsjwks.backends.awskms.settings import KmsSettings, StaticCredentials

HOME, REPLICA, THIRD = "us-east-1", "eu-west-1", "ap-southeast-2"
IMPATIENT = Patience(first_pause=0.005, longest_pause=0.05, quota_wait=5.0)


def kms_settings(endpoint: str, **changes: Any) -> KmsSettings:
    """Of an installation of its own, in one Region, unless ``changes`` say otherwise."""
    settings = KmsSettings(
        name="kms",
        regions=(HOME,),
        endpoint=endpoint,
        sts_endpoint=endpoint,
        installation=f"test-{secrets.token_hex(4)}",
        deletion_window_days=7,
        requests_per_second=100_000,
        read_timeout=10.0,
        credentials=StaticCredentials("AKIATESTTESTTESTTEST", "secret"),
    )
    return replace(settings, **changes)


def open_kms(
    settings: KmsSettings, regions: Regions | None = None, patience: Patience = IMPATIENT
) -> KmsBackend:
    return KmsBackend(settings, regions or Regions(settings), patience)
