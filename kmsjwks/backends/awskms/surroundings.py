"""What AWS says beside KMS: how long credentials last, what time it is, which quotas hold."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from kmsjwks.backends.awskms.settings import KmsSettings

_SIGNING_QUOTA = "Cryptographic operations ("
_OTHER_FAMILIES = ("symmetric", "SM")


class NotTold(Exception):
    """AWS does not say; the text tells why."""


class Surroundings:
    """Opens clients of its own for each question: it is asked by people, not by requests."""

    def __init__(self, settings: KmsSettings) -> None:
        self._settings = settings

    def credentials_expire(self) -> datetime | None:
        """When those in use now do, aware; boto3 renews a role's before that. None: not known."""
        try:
            credentials = self._session().get_credentials()
            expiry = getattr(credentials, "_expiry_time", None)
        except (BotoCoreError, ClientError, OSError):
            return None
        return expiry if isinstance(expiry, datetime) else None

    def signing_quotas(self, region: str) -> Mapping[str, float]:
        """Signatures a second by the quota's name, as they apply to the account in this Region.

        Raises:
            NotTold
        """
        try:
            client = self._client(
                self._session(), "service-quotas", region, self._settings.endpoint
            )
            pages = client.get_paginator("list_service_quotas").paginate(ServiceCode="kms")
            quotas = {
                quota["QuotaName"]: float(quota["Value"])
                for page in pages
                for quota in page["Quotas"]
                if _is_signing(quota["QuotaName"])
            }
        except Exception as error:  # whatever it is, it must not end an examination
            raise _not_told(error) from error
        if not quotas:
            raise NotTold("Service Quotas lists none for signing")
        return quotas

    def _session(self) -> boto3.session.Session:
        static = self._settings.credentials
        if static is None:
            return boto3.session.Session(profile_name=self._settings.profile)
        return boto3.session.Session(
            aws_access_key_id=static.access_key_id,
            aws_secret_access_key=static.secret_access_key,
            aws_session_token=static.session_token,
        )

    def _client(
        self, session: boto3.session.Session, service: str, region: str, endpoint: str | None
    ) -> Any:
        settings = self._settings
        return session.client(
            service,
            region_name=region,
            endpoint_url=endpoint.replace("{region}", region) if endpoint else None,
            config=Config(
                connect_timeout=settings.connect_timeout,
                read_timeout=settings.read_timeout,
                retries={"mode": "standard", "total_max_attempts": 2},
            ),
        )


def time_of(answer: Mapping[str, Any]) -> datetime | None:
    """The Date header of a boto3 answer, aware; None where there is none."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return parsedate_to_datetime(headers["date"]).astimezone(UTC)
    except (KeyError, ValueError):
        return None


def _is_signing(name: str) -> bool:
    family = name.removeprefix(_SIGNING_QUOTA)
    return family != name and not family.startswith(_OTHER_FAMILIES)


def _not_told(error: Exception) -> NotTold:
    if isinstance(error, ClientError):
        code = error.response.get("Error", {}).get("Code", "an error")
        return NotTold(f"AWS answered {code}")
    # The text of a botocore error may quote a URL or a path, its class does not.
    return NotTold(type(error).__name__)
