"""Sign as it is sent without boto3, and what boto3 makes of it when it fails; over real HTTP."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore import exceptions as boto
from botocore.credentials import ReadOnlyCredentials

from kmsjwks.backends.awskms.client import connect_aws
from kmsjwks.backends.awskms.directsign import DirectSign, Transport
from kmsjwks.backends.awskms.settings import KmsSettings, StaticCredentials
from tests.support.certificates import Authority

REGION = "eu-central-1"
PARAMS = {"KeyId": "k", "Message": b"\x00\xff", "MessageType": "RAW", "SigningAlgorithm": "X"}
SIGNED = 200, {"KeyId": "k", "Signature": "AAEC", "SigningAlgorithm": "X"}
BROKEN = 500, {"__type": "KMSInternalException"}
Answer = tuple[int, Any] | None  # status and body; None: the connection is closed without one


@dataclass(frozen=True)
class Asked:
    params: dict[str, Any]
    headers: dict[str, str]  # names in lower case
    connection: tuple[str, int]

    @property
    def is_ours(self) -> bool:
        """Sent without boto3, which numbers its attempts."""
        return "amz-sdk-request" not in self.headers


class Endpoint:
    """Answers by the test's function of the request's number, and remembers what it was asked."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.asked: list[Asked] = []
        self.answers: Callable[[int], Answer] = lambda _number: SIGNED
        self.keeps_alive, self.closed = True, threading.Semaphore(0)
        endpoint, counting = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                params = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                with counting:
                    endpoint.asked.append(Asked(params, headers, self.client_address))
                    number = len(endpoint.asked)
                self.answer(endpoint.answers(number))

            def answer(self, answer: Answer) -> None:
                # Not announced, as a server does that was restarted.
                self.close_connection = answer is None or not endpoint.keeps_alive
                if answer is not None:
                    data = json.dumps(answer[1]).encode()
                    self.send_response(answer[0])
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def shutdown_request(self, request: Any) -> None:
                super().shutdown_request(request)
                endpoint.closed.release()

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            self.url = f"https://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def no_configuration_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proxies = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"}
    for name in list(os.environ):
        if name.startswith("AWS_") or name.upper() in proxies:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


def client_of(url: str, **options: Any) -> Any:
    keys = StaticCredentials("AKIDEXAMPLE", "wJalrXUt", "a-token")
    settings = KmsSettings("kms", (REGION,), endpoint=url, credentials=keys, **options)
    return connect_aws(settings)("kms", REGION)


def test_a_signature_is_one_request_that_boto3_does_not_send(endpoint: Endpoint) -> None:
    client = client_of(endpoint.url)
    assert client.sign(**PARAMS)["Signature"] == b"\x00\x01\x02"
    [asked] = endpoint.asked
    assert asked.is_ours
    assert asked.params == {**PARAMS, "Message": base64.b64encode(b"\x00\xff").decode()}
    assert asked.headers["content-type"] == "application/x-amz-json-1.1"
    assert asked.headers["x-amz-target"] == "TrentService.Sign"
    assert asked.headers["x-amz-security-token"] == "a-token"
    assert f"/{REGION}/kms/aws4_request" in asked.headers["authorization"]
    assert asked.headers["user-agent"].startswith("Boto3/")
    assert " kmsjwks/" in asked.headers["user-agent"]


def test_it_means_the_same_as_what_boto3_sends(endpoint: Endpoint) -> None:
    endpoint.answers = lambda number: BROKEN if number == 1 else SIGNED
    assert client_of(endpoint.url).sign(**PARAMS)["Signature"] == b"\x00\x01\x02"
    ours, boto3s = endpoint.asked
    assert ours.is_ours
    assert not boto3s.is_ours
    assert ours.params == boto3s.params
    for name in ("host", "content-type", "x-amz-target", "x-amz-security-token"):
        assert ours.headers[name] == boto3s.headers[name]


@pytest.mark.parametrize("fault", [BROKEN, None], ids=["500", "connection closed"])
def test_boto3_counts_the_first_attempt_as_its_own(endpoint: Endpoint, fault: Answer) -> None:
    endpoint.answers = lambda number: fault if number == 1 else SIGNED
    client_of(endpoint.url).sign(**PARAMS)
    first, second = endpoint.asked
    assert first.is_ours
    assert "attempt=2; max=2" in second.headers["amz-sdk-request"]


def test_it_is_not_tried_a_third_time(endpoint: Endpoint) -> None:
    endpoint.answers = lambda _number: BROKEN
    with pytest.raises(boto.ClientError, match="KMSInternalException"):
        client_of(endpoint.url).sign(**PARAMS)
    assert len(endpoint.asked) == 2


def test_an_outage_does_not_use_up_all_later_retries(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """boto3 has a quota of retries, which grows with successes: also with those it does not see."""
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _seconds: None))
    client = client_of(endpoint.url)
    endpoint.answers = lambda _number: BROKEN
    for _ in range(60):
        with pytest.raises(boto.ClientError):
            client.sign(**PARAMS)
    endpoint.answers = lambda _number: SIGNED
    for _ in range(520):
        client.sign(**PARAMS)
    failed = len(endpoint.asked) + 1
    endpoint.answers = lambda number: BROKEN if number == failed else SIGNED
    assert client.sign(**PARAMS)["Signature"] == b"\x00\x01\x02"


def test_a_refusal_is_boto3s_error_and_asked_once(endpoint: Endpoint) -> None:
    endpoint.answers = lambda _number: (400, {"__type": "DisabledException", "message": "No."})
    client = client_of(endpoint.url)
    with pytest.raises(client.exceptions.DisabledException) as caught:
        client.sign(**PARAMS)
    assert caught.value.response["Error"] == {"Code": "DisabledException", "Message": "No."}
    meta = caught.value.response["ResponseMetadata"]
    assert (meta["HTTPStatusCode"], "content-length" in meta["HTTPHeaders"]) == (400, True)
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("said", [[], "text", {}, {"Signature": 5}, {"Signature": "not Base64!"}])
def test_boto3_judges_what_is_no_signature(endpoint: Endpoint, said: object) -> None:
    def outcome(client: Any) -> object:
        try:
            answer = client.sign(**PARAMS)
        except Exception as error:
            return type(error), str(error)
        return {name: value for name, value in answer.items() if name != "ResponseMetadata"}

    endpoint.answers = lambda _number: (200, said)
    direct = outcome(client_of(endpoint.url))
    assert direct == outcome(client_of(f"{endpoint.url}/path"))
    assert [asked.is_ours for asked in endpoint.asked] == [True, False]


@pytest.mark.parametrize("timeout", [{"read_timeout": 0.05}, {"connect_timeout": 0.05}])
def test_who_does_not_answer_is_given_up(timeout: dict[str, float]) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        client = client_of(url, **{"read_timeout": 0.1, "connect_timeout": 0.1, **timeout})
        with pytest.raises((boto.ReadTimeoutError, boto.ConnectTimeoutError)) as caught:
            client.sign(**PARAMS)
    assert caught.value.kwargs["endpoint_url"].startswith(url)


def test_who_does_not_listen_is_no_connection() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        client = client_of(f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(boto.EndpointConnectionError):
            client.sign(**PARAMS)


def test_a_connection_is_used_again(endpoint: Endpoint) -> None:
    client = client_of(endpoint.url)
    for _ in range(3):
        client.sign(**PARAMS)
    assert len({asked.connection for asked in endpoint.asked}) == 1


def test_a_connection_that_the_endpoint_closed_is_not_used_again(endpoint: Endpoint) -> None:
    endpoint.keeps_alive = False
    client = client_of(endpoint.url)
    for _ in range(3):
        client.sign(**PARAMS)
        assert endpoint.closed.acquire(timeout=5)
    assert [asked.is_ours for asked in endpoint.asked] == [True] * 3


def test_each_thread_is_told_what_became_of_its_own_request(endpoint: Endpoint) -> None:
    """The answer names the key that was asked for; every other one is an error."""

    def answers(number: int) -> Answer:
        key = endpoint.asked[number - 1].params["KeyId"]
        if int(key) % 2:
            return 400, {"__type": "NotFoundException", "message": key}
        return 200, {"KeyId": key, "Signature": "AAEC"}

    endpoint.answers = answers
    client = client_of(endpoint.url)

    def sign(number: int) -> str:
        try:
            return str(client.sign(**{**PARAMS, "KeyId": str(number)})["KeyId"])
        except boto.ClientError as error:
            return str(error.response["Error"]["Message"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(sign, range(200))) == [str(number) for number in range(200)]
    assert len(endpoint.asked) == 200


def test_credentials_are_those_of_the_moment(endpoint: Endpoint) -> None:
    class Refreshed:
        key = 0

        def get_frozen_credentials(self) -> ReadOnlyCredentials:
            self.key += 1
            return ReadOnlyCredentials(f"AKID{self.key}", "secret", None)

    client = client_of(endpoint.url)
    direct = DirectSign(client, Refreshed(), Transport(1.0, 1.0, 1))
    for number in (1, 2):
        direct.sign(**PARAMS)
        assert f"Credential=AKID{number}/" in endpoint.asked[-1].headers["authorization"]
        assert "x-amz-security-token" not in endpoint.asked[-1].headers


def test_all_else_is_the_boto3_client(endpoint: Endpoint) -> None:
    endpoint.answers = lambda _number: (200, {"KeyId": "k"})
    assert client_of(endpoint.url).get_public_key(KeyId="k")["KeyId"] == "k"
    assert not endpoint.asked[0].is_ours


@pytest.mark.parametrize(
    ("environ", "direct"),
    [
        ({}, True),
        ({"HTTPS_PROXY": "http://127.0.0.1:9"}, False),
        ({"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "kms.example.com"}, True),
        ({"HTTP_PROXY": "http://127.0.0.1:9"}, True),
        ({"NO_PROXY": "localhost"}, True),
    ],
)
def test_through_a_proxy_boto3_sends_all(
    environ: dict[str, str], direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert isinstance(client_of("https://kms.example.com"), DirectSign) is direct


def test_under_a_path_boto3_sends_all() -> None:
    assert not isinstance(client_of("https://example.com/kms"), DirectSign)


def test_only_a_trusted_certificate_of_that_host_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, bundle = Authority(), tmp_path / "ca.pem"
    bundle.write_bytes(authority.pem)
    names = {"good": ("localhost",), "other": ("kms.example.com",)}
    endpoints = {
        name: Endpoint(authority.issue(name, hosts=hosts, server=True).write(tmp_path, name))
        for name, hosts in names.items()
    }
    try:
        with pytest.raises(boto.SSLError):
            client_of(endpoints["good"].url).sign(**PARAMS)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
        with pytest.raises(boto.SSLError):
            client_of(endpoints["other"].url).sign(**PARAMS)
        assert [one.asked for one in endpoints.values()] == [[], []]
        client_of(endpoints["good"].url).sign(**PARAMS)
        assert [asked.is_ours for asked in endpoints["good"].asked] == [True]
    finally:
        for one in endpoints.values():
            one.close()
