"""Calls over real boto3 clients and HTTP: Regions in order, breakers, limits, credentials."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ProfileNotFound

from kmsjwks.backends.awskms.client import Clients, Connect, connect_aws
from kmsjwks.backends.awskms.failures import AlreadyExists, CredentialsUnavailable
from kmsjwks.backends.awskms.regions import Regions
from kmsjwks.backends.awskms.settings import KmsSettings, StaticCredentials
from kmsjwks.domain.errors import (
    BackendProtocolError,
    BackendThrottled,
    BackendUnavailable,
    CredentialsExpired,
    CredentialsMissing,
    KeyDisabled,
    KeyNotFound,
    WrongRegion,
)

HOME, AWAY = "eu-central-1", "us-east-1"
KEYS = StaticCredentials("AKIDEXAMPLE", "wJalrXUt")
SIGN = {"KeyId": "k", "Message": b"m", "SigningAlgorithm": "ECDSA_SHA_256"}
Answer = tuple[int, Any]  # status and body; a body of bytes is sent as it is


class Endpoint:
    """An HTTP server that answers as the test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], str]] = []
        self.missing = 0  # bytes of an answer that are announced and never sent
        self.answer: Callable[[str, dict[str, Any]], Answer] = lambda _operation, _params: (200, {})
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                operation = self.headers.get("X-Amz-Target", ".sts").partition(".")[2]
                params = json.loads(body) if operation != "sts" else {}
                endpoint.asked.append((operation, params, self.headers["User-Agent"]))
                status, answer = endpoint.answer(operation, params)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data) + endpoint.missing))
                self.end_headers()
                self.wfile.write(data)
                self.close_connection |= endpoint.missing > 0

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def fails(self, code: str, status: int = 400, message: str = "") -> None:
        self.answer = lambda _operation, _params: (status, {"__type": code, "message": message})

    def works(self) -> None:
        self.answer = lambda _operation, _params: (200, {"Signature": "AA=="})

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Time:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(autouse=True)
def no_credentials_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def refusing() -> Iterator[str]:
    """An address that nobody listens at, and nobody can take."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def time() -> Time:
    return Time()


def settings(**options: Any) -> KmsSettings:
    defaults = {"credentials": KEYS, "failure_threshold": 3, "open_seconds": 5.0}
    return KmsSettings("cloud", **{"regions": (HOME,), **defaults, **options})


def make(url: str, time: Time, **options: Any) -> Regions:
    one = settings(endpoint=url, sts_endpoint=url, **options)
    return Regions(one, Clients(one, monotonic=time), now=time, monotonic=time)


def make_two(home: str, away: str, time: Time, **options: Any) -> Regions:
    urls, both = {HOME: home, AWAY: away}, settings(regions=(HOME, AWAY), **options)

    def connector(one: KmsSettings) -> Connect:
        return lambda service, region: connect_aws(replace(one, endpoint=urls[region]))(
            service, region
        )

    clients = Clients(both, connector=connector, monotonic=time)
    return Regions(both, clients, now=time, monotonic=time)


def sign(regions: Regions, region: str | None = None, *, limited: bool = False) -> dict[str, Any]:
    params = {"KeyId": "k", "Message": b"m", "SigningAlgorithm": "ECDSA_SHA_256"}
    return regions.call("Sign", params, doing="signing", region=region, limited=limited)


def sign_preferred(regions: Regions) -> tuple[str, dict[str, Any]]:
    return regions.call_preferred(
        "Sign",
        lambda region: {"KeyId": region, "Message": b"m", "SigningAlgorithm": "ECDSA_SHA_256"},
        doing="signing",
    )


def test_an_operation_is_asked_by_its_name_in_the_api(endpoint: Endpoint, time: Time) -> None:
    endpoint.answer = lambda _operation, _params: (200, {"KeyId": "k"})
    regions = make(endpoint.url, time)
    assert regions.call("GetPublicKey", {"KeyId": "k"}, doing="x")["KeyId"] == "k"
    [(operation, params, user_agent)] = endpoint.asked
    assert (operation, params) == ("GetPublicKey", {"KeyId": "k"})
    assert "kmsjwks/" in user_agent


def test_an_error_names_the_key_and_the_region(endpoint: Endpoint, time: Time) -> None:
    endpoint.fails("DisabledException")
    with pytest.raises(KeyDisabled, match=f"k is disabled in {HOME}"):
        sign(make(endpoint.url, time))


def test_botocore_asks_twice_at_most(endpoint: Endpoint, time: Time) -> None:
    endpoint.fails("KMSInternalException", 500)
    with pytest.raises(BackendUnavailable):
        sign(make(endpoint.url, time))
    assert len(endpoint.asked) == 2


def test_a_body_that_is_no_answer_is_no_success(endpoint: Endpoint, time: Time) -> None:
    endpoint.answer = lambda _operation, _params: (502, b"<html>Bad gateway</html>")
    with pytest.raises(BackendUnavailable):
        sign(make(endpoint.url, time))


LISTS = {"ListKeys": "Keys", "ListAliases": "Aliases"}


@pytest.mark.parametrize("operation", LISTS)
@pytest.mark.parametrize("body", [b"<html>", b'{"Keys": [', b"[]", b""])
def test_what_is_no_answer_is_no_empty_list(
    endpoint: Endpoint, time: Time, operation: str, body: bytes
) -> None:
    """A key would be made anew, where the one that is there was not seen."""
    endpoint.answer = lambda _operation, _params: (200, body)
    with pytest.raises(BackendUnavailable):
        list(make(endpoint.url, time).pages(operation, {}, LISTS[operation], doing="listing"))


@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_that_breaks_off_is_an_outage(
    endpoint: Endpoint, time: Time, status: int
) -> None:
    endpoint.answer = lambda _operation, _params: (status, b'{"Keys": []}')
    endpoint.missing = 10
    regions = make(endpoint.url, time, failure_threshold=1)
    with pytest.raises(BackendUnavailable, match="ConnectionClosedError"):
        regions.call("ListKeys", {}, doing="listing keys")
    assert not regions.status().available


def test_a_signature_that_breaks_off_is_an_outage(endpoint: Endpoint, time: Time) -> None:
    endpoint.works()
    endpoint.missing = 10
    regions = make(endpoint.url, time, failure_threshold=1)
    with pytest.raises(BackendUnavailable, match="ConnectionClosedError"):
        sign(regions)
    assert not regions.status().available


def test_what_answers_nothing_may_be_empty(endpoint: Endpoint, time: Time) -> None:
    endpoint.answer = lambda _operation, _params: (200, b"")
    make(endpoint.url, time).call("EnableKey", {"KeyId": "k"}, doing="enabling a key")


def test_the_breaker_opens_probes_and_closes(endpoint: Endpoint, time: Time) -> None:
    regions = make(endpoint.url, time, failure_threshold=2)
    endpoint.fails("KMSInternalException", 500)
    for _ in range(2):
        with pytest.raises(BackendUnavailable):
            sign(regions)
    asked, opened_at = len(endpoint.asked), time.seconds
    with pytest.raises(BackendUnavailable) as refused:
        sign(regions)
    assert refused.value.retry_after == 5
    assert len(endpoint.asked) == asked
    status = regions.status()
    assert (status.available, status.since) == (False, opened_at)
    assert "KMSInternalException" in status.reason

    endpoint.works()
    time.seconds += 5
    sign(regions)
    assert regions.status().available


def test_after_a_long_outage_a_region_is_used_again_after_one_pause(
    endpoint: Endpoint, time: Time
) -> None:
    """What fails over to it, or back, waits for that as well."""
    regions = make(endpoint.url, time, failure_threshold=1)
    endpoint.fails("KMSInternalException", 500)
    for _ in range(8):
        with pytest.raises(BackendUnavailable):
            describe(regions)
        with pytest.raises(BackendUnavailable):
            sign(regions)
        time.seconds += 5
    endpoint.works()
    describe(regions)
    sign(regions)
    assert regions.status().available


@pytest.mark.parametrize(
    "code", ["ThrottlingException", "DisabledException", "AccessDeniedException"]
)
def test_an_answer_that_is_not_an_outage_never_opens_it(
    endpoint: Endpoint, time: Time, code: str
) -> None:
    regions = make(endpoint.url, time, failure_threshold=1)
    endpoint.fails(code)
    for _ in range(3):
        with pytest.raises(Exception, match=code):
            sign(regions)
    assert regions.status().available


def test_a_probe_that_is_refused_for_another_reason_proves_the_region(
    endpoint: Endpoint, refusing: str, time: Time
) -> None:
    regions = make(endpoint.url, time, failure_threshold=1)
    endpoint.fails("KMSInternalException", 500)
    with pytest.raises(BackendUnavailable):
        sign(regions)
    endpoint.fails("NotFoundException")
    time.seconds += 5
    with pytest.raises(KeyNotFound):
        sign(regions)
    assert regions.status().available


def test_of_eight_threads_one_probes(endpoint: Endpoint, time: Time) -> None:
    regions = make(endpoint.url, time, failure_threshold=1)
    endpoint.fails("KMSInternalException", 500)
    with pytest.raises(BackendUnavailable):
        sign(regions)
    time.seconds += 5
    endpoint.asked.clear()
    refused = threading.Semaphore(0)

    def answer_when_the_others_are_refused(_operation: str, _params: dict[str, Any]) -> Answer:
        for _ in range(7):
            assert refused.acquire(timeout=5)
        return 200, {"Signature": "AA=="}

    def attempt(_: int) -> bool:
        try:
            sign(regions)
        except BackendUnavailable:
            refused.release()
            return False
        return True

    endpoint.answer = answer_when_the_others_are_refused
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
    assert len(endpoint.asked) == 1
    assert regions.status().available


def test_a_region_that_refuses_connections_is_skipped(
    endpoint: Endpoint, refusing: str, time: Time
) -> None:
    endpoint.works()
    regions = make_two(refusing, endpoint.url, time)
    for _ in range(5):
        region, answer = sign_preferred(regions)
        assert (region, answer["Signature"]) == (AWAY, b"\0")
    assert {params["KeyId"] for _, params, _ in endpoint.asked} == {AWAY}
    with pytest.raises(BackendUnavailable, match="not asked for now"):
        sign(regions)  # home's breaker has opened meanwhile
    assert regions.status().available


def test_home_is_preferred_again_when_it_is_back(endpoint: Endpoint, time: Time) -> None:
    other = Endpoint()
    try:
        endpoint.fails("KMSInternalException", 500)
        other.works()
        regions = make_two(endpoint.url, other.url, time, failure_threshold=1)
        assert sign_preferred(regions)[0] == AWAY
        endpoint.works()
        assert sign_preferred(regions)[0] == AWAY
        time.seconds += 5
        assert sign_preferred(regions)[0] == HOME
    finally:
        other.close()


def test_the_first_regions_error_is_raised_when_none_answers(refusing: str, time: Time) -> None:
    regions = make_two(refusing, refusing, time, failure_threshold=1)
    with pytest.raises(BackendUnavailable, match=HOME):
        sign_preferred(regions)
    status = regions.status()
    assert not status.available
    assert HOME in status.reason
    assert AWAY in status.reason


def test_what_another_region_would_say_as_well_is_raised_at_once(
    endpoint: Endpoint, refusing: str, time: Time
) -> None:
    endpoint.fails("DisabledException")
    regions = make_two(endpoint.url, refusing, time)
    with pytest.raises(KeyDisabled):
        sign_preferred(regions)


def test_throttling_moves_on_without_opening_the_breaker(endpoint: Endpoint, time: Time) -> None:
    other = Endpoint()
    try:
        endpoint.fails("ThrottlingException")
        other.works()
        regions = make_two(endpoint.url, other.url, time, failure_threshold=1)
        assert sign_preferred(regions)[0] == AWAY
        endpoint.works()
        assert sign_preferred(regions)[0] == HOME
    finally:
        other.close()


def test_limited_calls_stop_before_aws_has_to_throttle(endpoint: Endpoint, time: Time) -> None:
    endpoint.works()
    regions = make(endpoint.url, time, requests_per_second=10)
    sign(regions, limited=True)
    with pytest.raises(BackendThrottled) as refused:
        sign(regions, limited=True)
    assert len(endpoint.asked) == 1
    sign(regions)  # reading is not limited
    time.seconds += refused.value.retry_after
    sign(regions, limited=True)
    assert regions.status().available


def test_lists_are_read_to_their_end(endpoint: Endpoint, time: Time) -> None:
    def answer(_operation: str, params: dict[str, Any]) -> Answer:
        page = int(params.get("Marker", "0"))
        more = {"Truncated": True, "NextMarker": str(page + 1)} if page < 2 else {}
        return 200, {"Keys": [{"KeyId": str(page)}], **more}

    endpoint.answer = answer
    regions = make(endpoint.url, time)
    keys = regions.pages("ListKeys", {"Limit": 1}, "Keys", doing="listing")
    assert [key["KeyId"] for key in keys] == ["0", "1", "2"]
    assert [params.get("Limit") for _, params, _ in endpoint.asked] == [1, 1, 1]


def test_a_list_that_does_not_end_is_an_error(endpoint: Endpoint, time: Time) -> None:
    endpoint.answer = lambda _operation, _params: (200, {"Truncated": True, "NextMarker": "x"})
    with pytest.raises(BackendProtocolError, match="does not end"):
        list(make(endpoint.url, time).pages("ListKeys", {}, "Keys", doing="listing"))


def test_a_region_that_nobody_needs_is_probed(
    endpoint: Endpoint, refusing: str, time: Time
) -> None:
    """Or the first callers that need it would meet an open breaker."""
    other = Endpoint()
    regions = make_two(endpoint.url, other.url, time, failure_threshold=1)
    for one in (endpoint, other):
        one.fails("KMSInternalException", 500)
    with pytest.raises(BackendUnavailable):
        sign_preferred(regions)
    endpoint.works()
    other.works()
    regions.probe("DescribeKey", {"KeyId": "k"})
    assert [asked for asked, _, _ in other.asked if asked == "DescribeKey"] == []
    time.seconds += 10
    sign_preferred(regions)
    for thread in regions.probe("DescribeKey", {"KeyId": "k"}):
        thread.join(5)
    assert [asked for asked, _, _ in other.asked if asked == "DescribeKey"] == ["DescribeKey"]
    assert regions.probe("DescribeKey", {"KeyId": "k"}) == []
    other.close()


def test_an_outage_is_no_quota(refusing: str, time: Time) -> None:
    """Callers that a breaker refuses use up nothing, and the probe is theirs to make."""
    regions = make(refusing, time, requests_per_second=1, failure_threshold=1)
    with pytest.raises(BackendUnavailable) as first:
        sign(regions, limited=True)
    time.seconds += 1
    refusals = [first]
    for _ in range(3):
        with pytest.raises(BackendUnavailable) as refused:
            sign(regions, limited=True)
        refusals.append(refused)
    assert {refusal.type for refusal in refusals} == {BackendUnavailable}


def test_a_probe_that_the_limit_forbids_is_left_to_the_next(endpoint: Endpoint, time: Time) -> None:
    regions = make(endpoint.url, time, requests_per_second=1, failure_threshold=1)
    sign(regions, limited=True)
    endpoint.fails("KMSInternalException", 500)
    with pytest.raises(BackendUnavailable):
        sign(regions)
    endpoint.works()
    time.seconds += 5
    sign(regions, limited=True)
    with pytest.raises(BackendThrottled):
        sign(regions, limited=True)
    endpoint.fails("KMSInternalException", 500)
    with pytest.raises(BackendUnavailable):
        sign(regions)
    endpoint.works()
    time.seconds += 0.5
    with pytest.raises(BackendUnavailable, match="not asked"):
        sign(regions, limited=True)
    time.seconds += 4.5
    sign(regions, limited=True)


def describe(regions: Regions) -> dict[str, Any]:
    return regions.call("DescribeKey", {"KeyId": "k"}, doing="describing a key")


def test_sign_alone_can_be_out(endpoint: Endpoint, time: Time) -> None:
    """Health, asked between signatures that are far apart, hides nothing."""
    regions = make(endpoint.url, time)
    failing = {"__type": "KMSInternalException", "message": ""}
    endpoint.answer = lambda operation, _: (500, failing) if operation == "Sign" else (200, {})
    for _ in range(3):
        time.seconds += 30
        describe(regions)
        assert regions.status().available
        with pytest.raises(BackendUnavailable):
            sign(regions)
    describe(regions)
    assert not regions.status().available
    time.seconds += 60  # a failover happened, nobody signs here any more
    describe(regions)
    assert regions.status().available
    with pytest.raises(BackendUnavailable, match="KMSInternalException"):
        sign(regions)
    assert not regions.status().available
    endpoint.works()
    time.seconds += 10
    sign(regions)
    assert regions.status().available


def test_when_all_but_sign_is_out_signing_goes_on(endpoint: Endpoint, time: Time) -> None:
    failing = {"__type": "KMSInternalException", "message": ""}
    endpoint.answer = lambda operation, _: (
        (200, {"Signature": "AA=="}) if operation == "Sign" else (500, failing)
    )
    regions = make(endpoint.url, time)
    for _ in range(4):
        with pytest.raises(BackendUnavailable):
            describe(regions)
    sign(regions)


@pytest.mark.parametrize("code", ["AccessDeniedException", "NotFoundException"])
def test_a_refusal_elsewhere_does_not_hide_an_outage(
    endpoint: Endpoint, refusing: str, time: Time, code: str
) -> None:
    endpoint.fails(code)
    regions = make_two(refusing, endpoint.url, time)
    for _ in range(3):
        with pytest.raises(BackendUnavailable, match=HOME):
            sign_preferred(regions)
    status = regions.status()
    assert (status.available, HOME in status.reason) == (False, True)
    endpoint.works()
    assert sign_preferred(regions)[0] == AWAY
    assert regions.status().available


def test_our_own_limit_does_not_spill_over(endpoint: Endpoint, time: Time) -> None:
    other = Endpoint()
    try:
        for one in (endpoint, other):
            one.works()
        regions = make_two(endpoint.url, other.url, time, requests_per_second=1)
        sign(regions, limited=True)
        with pytest.raises(BackendThrottled, match="requests_per_second"):
            regions.call_preferred("Sign", lambda _: SIGN, doing="signing", limited=True)
        assert other.asked == []
    finally:
        other.close()


@pytest.mark.parametrize("operation", ["CreateKey", "ReplicateKey"])
def test_what_makes_keys_is_asked_once_and_says_nothing_of_the_region(
    endpoint: Endpoint, time: Time, operation: str
) -> None:
    params = {"KeyId": "k", "ReplicaRegion": AWAY} if operation == "ReplicateKey" else {}
    endpoint.fails("KMSInternalException", 500)
    regions = make(endpoint.url, time, failure_threshold=1)
    for asked in (1, 2):
        with pytest.raises(BackendUnavailable, match="KMSInternalException"):
            regions.call(operation, params, doing="creating a key")
        assert len(endpoint.asked) == asked
    assert regions.status().available


def test_making_a_key_may_take_longer_than_a_signature(endpoint: Endpoint) -> None:
    clients = Clients(settings(endpoint=endpoint.url, read_timeout=0.5))
    assert clients.kms(HOME).meta.config.read_timeout == 0.5
    assert clients.making(HOME).meta.config.read_timeout == 30


def test_credentials_that_cannot_be_had_are_no_outage(
    endpoint: Endpoint,
    refusing: str,
    time: Time,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = tmp_path / "token"
    token.write_text("a web identity token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/signer")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", refusing)
    monkeypatch.setenv("AWS_REGION", HOME)
    regions = make(endpoint.url, time, credentials=None, failure_threshold=1)
    for _ in range(2):
        with pytest.raises(CredentialsUnavailable, match="STS"):
            sign(regions)
    assert endpoint.asked == []
    assert regions.status().available


def test_a_region_that_is_not_configured_is_not_asked(refusing: str, time: Time) -> None:
    with pytest.raises(WrongRegion, match="replica_regions"):
        sign(make(refusing, time), "ap-south-1")


def test_what_exists_already_has_its_own_error(endpoint: Endpoint, time: Time) -> None:
    endpoint.fails("AlreadyExistsException")
    with pytest.raises(AlreadyExists):
        params = {"AliasName": "alias/a", "TargetKeyId": "k"}
        make(endpoint.url, time).call("CreateAlias", params, doing="naming a key")


def test_the_caller_is_asked_of_sts(endpoint: Endpoint, time: Time) -> None:
    answer = (
        b"<GetCallerIdentityResponse><GetCallerIdentityResult><Account>111122223333</Account>"
        b"<Arn>arn:aws:iam::111122223333:user/x</Arn></GetCallerIdentityResult>"
        b"</GetCallerIdentityResponse>"
    )
    endpoint.answer = lambda _operation, _params: (200, answer)
    assert make(endpoint.url, time).caller()["Account"] == "111122223333"


def test_credentials_that_appear_later_are_found_without_a_restart(
    endpoint: Endpoint, time: Time, tmp_path: Path
) -> None:
    endpoint.works()
    regions = make(endpoint.url, time, credentials=None)
    for _ in range(2):
        with pytest.raises(CredentialsMissing):
            sign(regions)
    status = regions.status()
    assert (status.available, status.since) == (False, time.seconds)
    assert "no usable AWS credentials" in status.reason
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = AKID\naws_secret_access_key = x\n"
    )
    time.seconds += 5
    sign(regions)
    assert regions.status().available


def test_a_profile_is_read_again_when_its_token_expires(
    endpoint: Endpoint, time: Time, tmp_path: Path
) -> None:
    profile = "[signer]\naws_access_key_id = {}\naws_secret_access_key = x\n"
    (tmp_path / "credentials").write_text(profile.format("OLD"))
    regions = make(endpoint.url, time, credentials=None, profile="signer", failure_threshold=1)
    endpoint.fails("ExpiredTokenException")
    for _ in range(3):
        with pytest.raises(CredentialsExpired):
            sign(regions)
    assert not regions.status().available
    (tmp_path / "credentials").write_text(profile.format("NEW"))
    endpoint.works()
    time.seconds += 5
    sign(regions)
    assert regions.status().available


def test_a_profile_that_is_not_there_is_about_credentials(refusing: str, time: Time) -> None:
    regions = make(refusing, time, credentials=None, profile="nobody")
    with pytest.raises(CredentialsMissing, match="profile"):
        sign(regions)


def test_refused_credentials_at_home_make_all_regions_useless(
    endpoint: Endpoint, time: Time
) -> None:
    endpoint.fails("UnrecognizedClientException")
    regions = make_two(endpoint.url, endpoint.url, time)
    with pytest.raises(CredentialsExpired):
        sign_preferred(regions)
    assert not regions.status().available
    endpoint.works()
    sign(regions, AWAY)
    assert regions.status().available


class Recorder:
    """A connector that makes clients of nothing, and counts."""

    def __init__(self) -> None:
        self.sessions = 0
        self.made: list[tuple[str, str]] = []

    def __call__(self, _settings: KmsSettings) -> Connect:
        self.sessions += 1

        def connect(service: str, region: str) -> object:
            self.made.append((service, region))
            return object()

        return connect


def test_threads_share_one_client(time: Time) -> None:
    recorder = Recorder()
    clients = Clients(settings(), connector=recorder, monotonic=time)
    assert recorder.sessions == 0
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: clients.kms(HOME), range(64)))
    assert len(made) == 1
    assert (recorder.sessions, recorder.made) == (1, [("kms", HOME)])


def test_a_forked_process_makes_its_own_client(time: Time) -> None:
    recorder = Recorder()
    clients = Clients(settings(), connector=recorder, monotonic=time)
    clients.kms(HOME)
    child = os.fork()
    if child == 0:
        clients.kms(HOME)
        os._exit(recorder.sessions)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    clients.kms(HOME)
    assert recorder.sessions == 1


def test_credentials_are_looked_for_every_few_seconds_at_most(time: Time) -> None:
    recorder = Recorder()
    clients = Clients(settings(), connector=recorder, monotonic=time)
    first = clients.kms(HOME)
    for _ in range(10):
        clients.renew()
        assert clients.kms(HOME) is first
    time.seconds += 5
    clients.renew()
    assert clients.kms(HOME) is not first
    assert recorder.sessions == 2


def test_a_search_that_fails_is_not_repeated_with_every_call(time: Time) -> None:
    searches = 0

    def connector(_settings: KmsSettings) -> Connect:
        nonlocal searches
        searches += 1
        raise ProfileNotFound(profile="signer")

    clients = Clients(settings(), connector=connector, monotonic=time)
    for _ in range(10):
        with pytest.raises(ProfileNotFound):
            clients.kms(HOME)
    assert searches == 1
    time.seconds += 5
    with pytest.raises(ProfileNotFound):
        clients.kms(HOME)
    assert searches == 2


def test_nobody_waits_while_another_thread_looks_for_credentials(time: Time) -> None:
    looking, found = threading.Event(), threading.Event()
    recorder = Recorder()

    def connector(one: KmsSettings) -> Connect:
        if recorder.sessions:
            looking.set()
            assert found.wait(5)
        return recorder(one)

    clients = Clients(settings(), connector=connector, monotonic=time)
    first = clients.kms(HOME)
    time.seconds += 5
    clients.renew()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(clients.kms, HOME)
        assert looking.wait(5)
        assert clients.kms(HOME) is first
        found.set()
        assert second.result(5) is not first
    assert clients.kms(HOME) is second.result()
