"""Sign, sent without what boto3 does for every operation alike: a third of the CPU time."""

from __future__ import annotations

import io
import json
import socket
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import urllib3
from botocore import exceptions as boto
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.httpsession import create_urllib3_context
from urllib3.connection import HTTPConnection

_KEEP_ALIVE = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
_RETRY_QUOTA = 500  # botocore.retries.quota.RetryQuota.INITIAL_CAPACITY
_OK = AWSResponse("", 200, {}, None)
# As botocore.httpsession.URLLib3Session has it; the first that fits.
_AS_BOTOCORE = (
    (urllib3.exceptions.SSLError, boto.SSLError),
    (urllib3.exceptions.NewConnectionError, boto.EndpointConnectionError),
    (urllib3.exceptions.ConnectTimeoutError, boto.ConnectTimeoutError),
    (urllib3.exceptions.ReadTimeoutError, boto.ReadTimeoutError),
    (urllib3.exceptions.ProtocolError, boto.ConnectionClosedError),
)


@dataclass(frozen=True, slots=True)
class Transport:
    """How the endpoint is reached. Timeouts in seconds; ``ca_certs`` is a file of CA
    certificates."""

    connect_timeout: float
    read_timeout: float
    max_connections: int
    ca_certs: str | None = None

    def pool(self, url: str) -> urllib3.HTTPConnectionPool:
        """Connections to the host of ``url``, kept alive. Thread-safe."""
        options: dict[str, Any] = {
            "timeout": urllib3.Timeout(connect=self.connect_timeout, read=self.read_timeout),
            "maxsize": self.max_connections,
            "retries": False,
            "socket_options": _KEEP_ALIVE,
        }
        if urlsplit(url).scheme == "https":
            # boto3's context: urllib3's own is stricter with private CAs from Python 3.13 on.
            context = create_urllib3_context()
            options |= {
                "ssl_context": context, "cert_reqs": "CERT_REQUIRED", "ca_certs": self.ca_certs,
            }  # fmt: skip
        return urllib3.connection_from_url(url, **options)


class DirectSign:
    """A boto3 client of AWS KMS, but that the first attempt of Sign is sent from here.

    Whatever comes of it that is not a signature is handed to boto3 as the outcome of its own first
    attempt, by its event before-send ("Botocore Events"). So boto3 alone says what is tried again,
    how often and when, and what is raised. Thread-safe.
    """

    def __init__(self, client: Any, credentials: Any, transport: Transport) -> None:
        """``credentials``: botocore's of the client's session, which refresh themselves."""
        self._client, self._credentials = client, credentials
        meta = client.meta
        self._url: str = meta.endpoint_url
        self._scope: tuple[str, str] = meta.service_model.signing_name, meta.region_name
        model, config = meta.service_model.metadata, meta.config
        # "Making API requests", AWS KMS API Reference: the JSON protocol.
        self._headers = {
            "content-type": f"application/x-amz-json-{model['jsonVersion']}",
            "x-amz-target": f"{model['targetPrefix']}.Sign",
        }
        self._user_agent = f"{config.user_agent} {config.user_agent_extra or ''}".strip()
        self._pool = transport.pool(self._url)
        self._attempted = threading.local()
        self._owed = 0  # successes that boto3 may not have been told of
        meta.events.register("before-send.kms.Sign", self._hand_over)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def sign(self, **params: Any) -> dict[str, Any]:
        """As the boto3 client's; ``params`` are not validated here."""
        outcome = self._attempt(params)
        if isinstance(outcome, dict):
            self._give_back(outcome)
            return outcome
        self._owed = _RETRY_QUOTA
        self._attempted.outcome = outcome
        try:
            answer: dict[str, Any] = self._client.sign(**params)
            return answer
        finally:
            self._attempted.outcome = None

    def close(self) -> None:
        self._pool.close()
        self._client.close()

    def _give_back(self, answer: dict[str, Any]) -> None:
        """boto3's retry quota grows by 1 with each success that it sees ("Standard retry mode"):
        without ours, the retries of one outage would be the last ones. A race only gives too much,
        and the quota has its own limit."""
        if self._owed > 0:
            self._owed -= 1
            self._client.meta.events.emit(
                "after-call.kms.Sign", http_response=_OK, parsed=answer, model=None, context={}
            )

    def _attempt(self, params: dict[str, Any]) -> dict[str, Any] | AWSResponse | Exception:
        request = AWSRequest("POST", self._url, headers=self._headers, data=_json(params))
        SigV4Auth(self._credentials.get_frozen_credentials(), *self._scope).add_auth(request)
        headers = {**dict(request.headers), "user-agent": self._user_agent}
        try:
            response = self._pool.urlopen(
                "POST", "/", request.data, headers, redirect=False, assert_same_host=False
            )
        except urllib3.exceptions.HTTPError as error:
            return _as_botocore(error, self._url)
        answer = _signature(response.data) if response.status == 200 else None
        return answer or _as_aws_response(response, self._url)

    def _hand_over(self, **_: Any) -> AWSResponse | None:
        """What botocore takes for the response to what it was about to send."""
        outcome = getattr(self._attempted, "outcome", None)
        self._attempted.outcome = None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def _json(params: dict[str, Any]) -> bytes:
    """Blobs are Base64 in the JSON protocol."""
    text = {
        name: b64encode(value).decode() if isinstance(value, bytes) else value
        for name, value in params.items()
    }
    return json.dumps(text).encode()


def _signature(data: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(data)
        answer["Signature"] = b64decode(answer["Signature"])
    except (ValueError, TypeError, KeyError):
        return None  # boto3 says what is wrong with it
    return dict(answer)


def _as_aws_response(response: urllib3.BaseHTTPResponse, url: str) -> AWSResponse:
    read = io.BytesIO(response.data)
    raw = urllib3.HTTPResponse(read, status=response.status, preload_content=False)
    return AWSResponse(url, response.status, response.headers, raw)


def _as_botocore(error: urllib3.exceptions.HTTPError, url: str) -> Exception:
    kinds = (theirs for ours, theirs in _AS_BOTOCORE if isinstance(error, ours))
    kind: Callable[..., Exception] = next(kinds, boto.HTTPClientError)
    return kind(endpoint_url=url, error=error)
