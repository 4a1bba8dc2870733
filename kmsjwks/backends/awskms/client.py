"""boto3's clients: one a service, Region and process, with bounded calls."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import boto3.session
import botocore.session
from botocore.config import Config
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from kmsjwks import __version__
from kmsjwks.backends.awskms.directsign import DirectSign, Transport
from kmsjwks.backends.awskms.sentences import CredentialsUnavailable
from kmsjwks.backends.awskms.settings import KmsSettings
from kmsjwks.backends.awskms.wholeness import refuse_broken_answers

_ATTEMPTS = 2
# CreateKey and ReplicateKey make something with every call, and may take their time.
_MAKING_TIMEOUT = 30.0  # seconds
_MAKING = "kms-making"
_RENEW_AFTER = 5.0  # seconds between two searches for credentials

Connect = Callable[[str, str], Any]  # service and Region to client


class Clients:
    """Made when first needed in a process, so that none is shared over a fork. Thread-safe.

    Credentials that boto3 can refresh (roles, IRSA, instance metadata) are refreshed by boto3;
    ``renew`` is for all others, such as a profile whose file was rewritten.
    """

    def __init__(
        self,
        settings: KmsSettings,
        *,
        connector: Callable[[KmsSettings], Connect] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``connector`` makes a session; what it returns makes that session's clients."""
        self._settings, self._monotonic = settings, monotonic
        self._connector = connector or connect_aws
        # What calls take at most, twice: making a client may look for credentials over HTTP.
        self._patience = 2 * _ATTEMPTS * (settings.connect_timeout + settings.read_timeout)
        self._reset()
        reset = weakref.WeakMethod(self._reset)
        os.register_at_fork(after_in_child=lambda: _call_if_alive(reset))

    def _reset(self) -> None:
        self._making = threading.Lock()
        self._made: dict[tuple[str, str], Any] = {}
        self._old: dict[tuple[str, str], Any] = {}
        self._connect: Connect | None = None
        self._connected_at = 0.0
        self._stale = False
        self._failure: Exception | None = None

    def kms(self, region: str) -> Any:
        """
        Raises:
            CredentialsUnavailable: another thread is still looking for credentials.
            botocore's exceptions, such as ProfileNotFound.
        """
        return self._client("kms", region)

    def making(self, region: str) -> Any:
        """As ``kms``, for what makes keys: one attempt, and 30 seconds for it."""
        return self._client(_MAKING, region)

    def kms_endpoint(self, region: str) -> str:
        """The URL that is really asked: an environment variable or a profile may name it. Raises
        what ``kms`` does."""
        return str(self.kms(region).meta.endpoint_url)

    def sts(self) -> Any:
        """In the home Region. Raises what ``kms`` does."""
        return self._client("sts", self._settings.regions[0])

    def renew(self) -> None:
        """Look for credentials anew with the next call that is made a few seconds after the last
        search."""
        self._stale = True

    def close(self) -> None:
        with self._making:
            clients = [*self._made.values(), *self._old.values()]
            self._made, self._old, self._connect = {}, {}, None
        for client in clients:
            client.close()

    def _client(self, service: str, region: str) -> Any:
        if self._stale and self._may_search():
            self._retire()
        known = self._made.get((service, region))
        if known is not None:
            return known
        old = self._old.get((service, region))
        if not self._making.acquire(timeout=0 if old else self._patience):
            if old is not None:
                return old
            raise CredentialsUnavailable(
                "AWS credentials are still being looked for. It is tried again; check that this "
                "machine reaches whatever hands them out if it lasts."
            )
        try:
            return self._make(service, region)
        finally:
            self._making.release()

    def _may_search(self) -> bool:
        return self._monotonic() - self._connected_at >= _RENEW_AFTER

    def _retire(self) -> None:
        if not self._making.acquire(blocking=False):
            return
        try:
            if self._stale and self._may_search():
                self._stale, self._connect = False, None
                # Kept for those who would have to wait for the new ones.
                self._old, self._made = self._made, {}
        finally:
            self._making.release()

    def _make(self, service: str, region: str) -> Any:
        known = self._made.get((service, region))
        if known is not None:
            return known
        if self._failure is not None and not self._may_search():
            raise self._failure.with_traceback(None)
        try:
            if self._connect is None:
                self._connected_at = self._monotonic()
                self._connect = self._connector(self._settings)
            client = self._connect(service, region)
        except Exception as error:
            self._failure, self._connect = error, None
            raise
        self._made[service, region], self._failure = client, None
        self._old.pop((service, region), None)
        return client


def connect_aws(settings: KmsSettings) -> Connect:
    """A session of its own, whose clients are made one at a time: boto3's sessions are not
    thread-safe, its clients are."""
    config = Config(
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        # Not "adaptive", which makes threads wait for its own idea of a quota.
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        max_pool_connections=settings.max_connections,
        tcp_keepalive=True,
        user_agent_extra=f"kmsjwks/{__version__}",
    )
    core = botocore.session.Session()
    # Also for the calls that find credentials, which would wait a minute otherwise.
    core.set_default_client_config(config)
    keys = settings.credentials
    session = boto3.session.Session(
        botocore_session=core,
        profile_name=settings.profile,
        aws_access_key_id=keys.access_key_id if keys else None,
        aws_secret_access_key=keys.secret_access_key if keys else None,
        aws_session_token=keys.session_token if keys else None,
    )
    once = Config(
        read_timeout=max(_MAKING_TIMEOUT, settings.read_timeout), retries={"total_max_attempts": 1}
    )
    endpoints = {
        "kms": settings.endpoint,
        _MAKING: settings.endpoint,
        "sts": settings.sts_endpoint,
    }
    credentials = session.get_credentials()
    transport = Transport(
        settings.connect_timeout, settings.read_timeout, settings.max_connections, _ca_certs(core)
    )

    def connect(service: str, region: str) -> Any:
        endpoint = endpoints[service]
        making = service == _MAKING
        client = session.client(
            "kms" if making else service,
            region_name=region,
            endpoint_url=endpoint.replace("{region}", region) if endpoint else None,
            config=config.merge(once) if making else config,
        )
        if service != "sts":
            refuse_broken_answers(client)
        if service != "kms" or credentials is None or not _is_reached_directly(client):
            return client
        return DirectSign(client, credentials, transport)

    return connect


def _is_reached_directly(client: Any) -> bool:
    """Neither by a proxy nor with a path in front, which boto3 knows how to do."""
    url = client.meta.endpoint_url
    parts = urlsplit(url)
    return parts.scheme not in get_environ_proxies(url) and parts.path in {"", "/"}


def _ca_certs(core: botocore.session.Session) -> str | None:
    """The file of CA certificates that boto3 uses."""
    configured = core.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    path: str | None = get_cert_path(configured or True)
    return path


def _call_if_alive(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    call = method()
    if call is not None:
        call()
