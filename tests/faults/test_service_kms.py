"""AWS KMS is slow, throttles, fails, lies, refuses or is gone, while clients sign and fetch the
JWKS."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.support.awskms import HOME, REPLICA
from tests.support.http import Http
from tests.support.kms import FakeKms
from tests.support.kmsservice import (
    CALL_BOUND,
    CREDENTIALS,
    LIMIT,
    MAX_CONCURRENCY,
    WORKERS,
    KmsService,
    active_refs,
    install,
    percentile,
)
from tests.support.kmswatch import READING_LIMIT, assert_problem, is_retryable, load
from tests.support.load import Load, wait_until
from tests.support.service import Server, free_port
from tests.support.softhsm import provision

ANSWERED_AT_ONCE = 0.3  # seconds
OPEN_SECONDS = 1.0  # until the first probe; doubled after each that fails


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KmsService]:
    directory = tmp_path_factory.mktemp("kms")
    with pytest.MonkeyPatch.context() as patch, FakeKms() as kms, ExitStack() as stack:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        installation, metrics_port = install(kms, provision(directory / "token"), directory / "s")
        refs = active_refs(installation)
        kms.forget_calls()
        server = Server(installation, workers=WORKERS)
        stack.callback(server.kill_all)
        server.start()
        wait_until(lambda: kms.calls("DescribeKey") >= 2 * 3, 5, "workers ask for health")
        yield KmsService(kms, installation, server, metrics_port, refs, kms.calls("Sign"))
        assert server.stop() == 0


@pytest.fixture
def service(running: KmsService) -> Iterator[KmsService]:
    """Well before each test, and left well: by itself, never restarted."""
    wait_until(lambda: _signs_everywhere(running), 12, "recovery from the test before")
    pids = running.server.worker_pids()
    running.kms.forget_calls()
    yield running
    running.kms.deny()
    running.kms.clear_faults()
    running.kms.settings(expired_access_keys=[])
    assert running.server.worker_pids() == pids


def _signs_everywhere(running: KmsService) -> bool:
    """In every worker: what the kernel gives a new connection to is chance."""
    names = ("es", "wide", "soft")
    return all(running.server.sign(name).status == 200 for name in names for _ in range(6))


def readiness(service: KmsService) -> dict[str, Any]:
    answer = service.server.http().get("/readyz")
    assert answer.status == 200
    shown: dict[str, Any] = answer.json()
    return shown


def is_down(service: KmsService, backend: str = "kms") -> bool:
    return backend in readiness(service)["backends_down"]


def _left_alone(said: str) -> bool:
    """Whether a breaker opened."""
    return re.search("is not asked (to sign )?for a while", said) is not None


def restart_fake(kms: FakeKms) -> None:
    if kms.is_running():
        kms.resume()
        kms.clear_faults()
    else:
        kms.start()


# No fault


def test_only_signatures_are_signatures(running: KmsService) -> None:
    """Starting, the JWKS, health, metrics and listing never call Sign, which costs."""
    assert running.called_at_start == 0
    running.kms.forget_calls()
    http, metrics = running.server.http("all"), Http(running.metrics_port)
    for path in ("/.well-known/jwks.json", "/healthz", "/readyz", "/v1/keysets"):
        assert [http.get(path).status for _ in range(5)] == [200] * 5
    assert metrics.get("/metrics").status == 200
    assert running.kms.calls("Sign") == 0


@pytest.mark.parametrize(
    ("keyset", "algorithm", "message_type", "length"),
    [
        ("rs", "RSASSA_PKCS1_V1_5_SHA_256", "DIGEST", 32),
        ("es", "ECDSA_SHA_256", "DIGEST", 32),
        ("ed", "ED25519_SHA_512", "RAW", None),
        ("pq", "ML_DSA_SHAKE_256", "RAW", None),
    ],
)
def test_a_signature_is_one_call(
    service: KmsService, keyset: str, algorithm: str, message_type: str, length: int | None
) -> None:
    before = set(service.recorded())
    tokens = [service.server.sign(keyset).json()["token"] for _ in range(10)]
    assert set(service.recorded()) - before == service.verify(keyset, tokens)
    signs = service.kms.signs()
    assert service.kms.calls("Sign") == len(signs) == 10
    expected = [length or len(token.rpartition(".")[0]) for token in tokens]
    ref = service.refs[keyset]
    assert [(one.asked, one.key, one.algorithm, one.message_type) for one in signs] == [
        (ref, ref, algorithm, message_type)
    ] * 10
    assert [one.length for one in signs] == expected
    others = ("GetPublicKey", "ListKeys", "ListAliases", "ListResourceTags", "GetCallerIdentity")
    assert {name: service.kms.calls(name) for name in others} == dict.fromkeys(others, 0)


def test_a_large_message(service: KmsService) -> None:
    """Ed25519 has no way to sign more than 4,096 bytes with AWS KMS, ML-DSA has."""
    claims = {"large": "x" * 4000}
    refused = service.server.sign("ed", claims)
    assert (refused.status, refused.header("Content-Type")) == (413, "application/problem+json")
    assert refused.json()["code"] == "message-too-large"
    assert "4096" in refused.json()["detail"]
    assert service.kms.calls("Sign") == 0
    signed = service.server.sign("pq", claims)
    assert signed.status == 200
    service.verify("pq", [signed.json()["token"]])
    assert [(one.message_type, one.length) for one in service.kms.signs()] == [("EXTERNAL_MU", 64)]


# Slow, or too much


def test_slow_signatures(service: KmsService) -> None:
    """Those in flight end; more than the bulkhead holds are refused at once; the rest is fast."""
    with load(service, signers=28) as watched:
        service.kms.fault("latency", operation="Sign", seconds=1.5)
        slowed = time.monotonic()
        time.sleep(3.4)
        service.kms.clear_faults()
        recovered = watched.wait_signing(2)
    slow = [one for one in watched.main.signing(slowed + 0.2) if one.seconds > 1.4]
    most = WORKERS * (MAX_CONCURRENCY * 3 // 4)  # one backend of several
    assert len(slow) >= most
    assert {one.status for one in slow} == {200}
    refused = [one for one in watched.main.signing() if is_retryable(one)]
    assert {one.answer.json()["code"] for one in refused if one.answer} == {"overloaded"}
    assert percentile(refused, 0.99) < READING_LIMIT
    # The client's clock sees a place taken earlier and left later than the server does.
    events = [(one.began + 0.3, 1) for one in slow] + [(one.ended - 0.3, -1) for one in slow]
    assert _most_at_once(events) <= most
    assert recovered < 2


def _most_at_once(events: list[tuple[float, int]]) -> int:
    most = now = 0
    for _, change in sorted(events):
        now += change
        most = max(most, now)
    return most


@pytest.mark.parametrize("operation", ["Sign", "*"])
def test_throttled_by_aws(service: KmsService, operation: str) -> None:
    """429; that is no outage: nothing is marked as down, and it is over at once."""
    logged = len(service.server.logged())
    with load(service) as watched:
        service.kms.throttle(operation=operation)
        throttled = time.monotonic()
        time.sleep(1.8)
        assert not is_down(service)
        service.kms.clear_faults()
        assert watched.wait_signing(1.5) < 1.5
    refused = [one for one in watched.main.signing() if one.status != 200]
    assert refused
    for one in refused:
        assert_problem(one.answer, 429, "backend-throttled")
    assert min(one.ended for one in refused) - throttled < CALL_BOUND
    assert not _left_alone(service.server.logged()[logged:])


def test_the_limit_is_kept_before_aws_is_asked(service: KmsService) -> None:
    started = time.monotonic()
    with load(service, "small", signers=4) as watched:
        time.sleep(2)
    seconds = time.monotonic() - started
    seen = watched.main.signing()
    refused = [one for one in seen if one.status != 200]
    assert refused
    for one in refused:
        assert_problem(one.answer, 429, "backend-throttled")
    assert percentile(refused, 0.99) < ANSWERED_AT_ONCE
    asked = [one for one in service.kms.signs() if one.key == service.refs["small"]]
    assert len(asked) == len(watched.main.tokens()) == service.kms.calls("Sign")
    assert len(asked) <= LIMIT * seconds + WORKERS


# Gone


@dataclass(frozen=True)
class Outage:
    begin: Callable[[FakeKms], None]
    answers: bool = True  # or hangs


OUTAGES = {
    "internal-exception": Outage(lambda kms: kms.error("KMSInternalException")),
    "sign-alone": Outage(lambda kms: kms.error("KMSInternalException", operation="Sign")),
    "bare-503": Outage(lambda kms: kms.fault("status", status=503)),
    "reset": Outage(lambda kms: kms.fault("reset")),
    "reset-in-the-answer": Outage(lambda kms: kms.fault("truncate")),
    "another-server": Outage(lambda kms: kms.fault("garbage")),
    "stopped": Outage(lambda kms: kms.pause(), answers=False),
    "killed": Outage(lambda kms: kms.kill()),
}


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage(service: KmsService, name: str) -> None:
    outage = OUTAGES[name]
    with load(service) as watched:
        outage.begin(service.kms)
        lost = time.monotonic()
        try:
            wait_until(lambda: is_down(service), CALL_BOUND + 1, "readiness")
            wait_until(
                lambda: _refused_at_once(watched.main, lost), CALL_BOUND + 1, "breakers open"
            )
            opened = time.monotonic()
            time.sleep(0.8)
        finally:
            restart_fake(service.kms)
        # A probe may be on its way; after one that failed the next is twice as long away.
        watched.wait_signing(CALL_BOUND + 4 * OPEN_SECONDS)
        wait_until(lambda: not is_down(service), 3, "readiness")
    failed = [one for one in watched.main.signing() if is_retryable(one)]
    assert failed
    assert max(one.seconds for one in failed) < CALL_BOUND + 0.5
    later = [one for one in failed if opened < one.began < opened + 0.8]
    # Probes wait; and of hundreds a few may, on a machine that others use too.
    slow = [one for one in later if one.seconds > ANSWERED_AT_ONCE]
    assert len(slow) <= WORKERS + len(later) // 50
    assert service.server.process.poll() is None


def _refused_at_once(load: Load, since: float) -> bool:
    last = [one for one in load.signing(since) if one.status == 503][-20:]
    return len(last) == 20 and all(one.seconds < ANSWERED_AT_ONCE for one in last)


def test_absent_when_the_service_starts(service: KmsService) -> None:
    """The JWKS comes from the database; signing begins when KMS does."""
    installation = copy(service.installation)
    installation.config = service.installation.directory / "late.toml"
    words = f"port = {service.metrics_port}"
    installation.config.write_text(
        service.installation.config.read_text().replace(words, "port = 0")
    )
    server = Server(installation, port=free_port(), workers=1)
    service.kms.kill()
    try:
        server.start()
        late = replace(service, server=server)
        assert set(service.refs) >= {"es", "soft"}
        assert len(late.jwks("es")) == len(service.jwks("es")) > 5
        assert server.http().get("/healthz").status == 200
        assert server.sign("soft").status == 200
        assert_problem(server.sign("es"), 503, "backend-unavailable")
        wait_until(lambda: is_down(late), 5, "readiness")
        service.kms.start()
        wait_until(lambda: server.sign("es").status == 200, 8, "signing")
        wait_until(lambda: not readiness(late)["backends_down"], 3, "readiness")
        late.verify("es", [server.sign("es").json()["token"]])
        assert server.stop() == 0
    finally:
        server.kill_all()
        if not service.kms.is_running():
            service.kms.start()


# Wrong


def _wrong(kms: FakeKms, service: KmsService, name: str) -> None:
    match name:
        case "another-key":
            members = {"KeyId": service.refs["other"]}
            kms.fault("answer", operation="Sign", members=members)
        case "another-algorithm":
            members = {"SigningAlgorithm": "ECDSA_SHA_384"}
            kms.fault("answer", operation="Sign", members=members)
        case "no-der":
            members = {"Signature": base64.b64encode(b"\0" * 64).decode()}
            kms.fault("answer", operation="Sign", members=members)
        case "empty":
            kms.fault("answer", operation="Sign", members={"Signature": ""})
        case _:
            kms.fault(name, operation="Sign")


@pytest.mark.parametrize(
    "name",
    [
        "another-key", "another-algorithm", "no-der", "empty", "wrong-signature", "garbage",
        "truncate",
    ],
)  # fmt: skip
def test_a_wrong_answer_is_never_released(service: KmsService, name: str) -> None:
    before = service.recorded()
    _wrong(service.kms, service, name)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: service.server.sign("es"), range(24)))
    for answer in answers:
        assert_problem(answer, 503, "backend-protocol-error", "backend-unavailable", "overloaded")
    assert service.recorded() == before
    assert len(service.jwks("es")) > 5


# Refused


@dataclass(frozen=True)
class Refusal:
    """``sentence``: what the operator reads in the log. ``on_the_way``: the code between its end's
    two steps."""

    begin: Callable[[KmsService], object]
    end: Callable[[KmsService], object]
    code: str
    sentence: str
    on_the_way: str = ""


def _schedule(service: KmsService) -> None:
    service.client().schedule_key_deletion(KeyId=service.refs["es"], PendingWindowInDays=7)


def _cancel(service: KmsService) -> None:
    service.client().cancel_key_deletion(KeyId=service.refs["es"])
    service.client().enable_key(KeyId=service.refs["es"])


REFUSALS = {
    "disabled": Refusal(
        lambda service: service.client().disable_key(KeyId=service.refs["es"]),
        lambda service: service.client().enable_key(KeyId=service.refs["es"]),
        "backend-key-disabled",
        "is disabled in us-east-1 (DisabledException)",
    ),
    "pending-deletion": Refusal(
        _schedule,
        _cancel,
        "backend-key-pending-deletion",
        "cancel it (kms:CancelKeyDeletion)",
        on_the_way="backend-key-disabled",
    ),
    # The key-state table of the developer guide allows this answer for the same state.
    "pending-deletion-as-disabled": Refusal(
        lambda service: service.kms.error(
            "DisabledException",
            operation="Sign",
            message=f"{service.refs['es']} is pending deletion.",
        ),
        lambda service: service.kms.clear_faults(),
        "backend-key-pending-deletion",
        "cancel it (kms:CancelKeyDeletion)",
    ),
    "denied": Refusal(
        lambda service: service.kms.deny("kms:Sign"),
        lambda service: service.kms.deny(),
        "backend-denied",
        "Allow kms:Sign on arn:aws:kms:us-east-1:",
    ),
    "expired": Refusal(
        lambda service: service.kms.settings(
            expired_access_keys=[CREDENTIALS["AWS_ACCESS_KEY_ID"]]
        ),
        lambda service: service.kms.settings(expired_access_keys=[]),
        "backend-credentials-expired",
        "The session of these AWS credentials is over",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_has_its_code_and_its_sentence(service: KmsService, name: str) -> None:
    refusal, logged = REFUSALS[name], len(service.server.logged())
    with load(service) as watched:
        refusal.begin(service)
        try:
            time.sleep(0.8)
            assert is_down(service) == (name == "expired")
        finally:
            refusal.end(service)
        assert watched.wait_signing(1.5) < 1.5
    refused = [one for one in watched.main.signing() if one.status != 200]
    assert len(refused) > 10
    for one in refused:
        assert_problem(one.answer, 503, refusal.code, refusal.on_the_way)
    said = service.server.logged()[logged:]
    assert refusal.sentence in said
    assert refusal.code in said
    assert not _left_alone(said)


@pytest.mark.parametrize("name", ["denied", "expired"])
def test_doctor_says_what_the_log_says(service: KmsService, name: str) -> None:
    refusal = REFUSALS[name]
    refusal.begin(service)
    done = service.installation.cli("-o", "json", "doctor", "--backend", "kms")
    assert done.returncode in (3, 5)
    said = " ".join(row["said"] for row in json.loads(done.stdout) if not row["ok"])
    assert refusal.sentence in said


def test_health_may_be_denied_where_signing_is_not(service: KmsService) -> None:
    """AWS KMS answered and knew our credentials: that is what health asks."""
    assert service.server.sign("es").status == 200
    service.kms.deny("kms:DescribeKey")
    asked = service.kms.calls("DescribeKey")
    wait_until(lambda: service.kms.calls("DescribeKey") > asked + 8, 5, "health checks")
    assert readiness(service)["backends_down"] == {}
    assert service.server.sign("es").status == 200


# Regions


def _is_asked_again(service: KmsService, region: str) -> bool:
    logged = service.server.logged()
    others = [f"AWS KMS in {region} answers again"]
    signing = [f"AWS KMS in {region} {said}" for said in ("signs again", "is asked to sign again")]
    return logged.count(f"AWS KMS in {region} is not asked for a while") == sum(
        map(logged.count, others)
    ) and logged.count(f"AWS KMS in {region} is not asked to sign for a while") == sum(
        map(logged.count, signing)
    )


@pytest.mark.parametrize("fault", ["reset", "hangs"])
def test_the_preferred_region_is_cut_off(service: KmsService, fault: str) -> None:
    # An outage of the tests before hit both Regions: health finds out that the other is back, too.
    wait_until(
        lambda: _is_asked_again(service, REPLICA), 15, "the other Region is known to be well"
    )
    bound = 2 * (0.5 + 1.5) + 1.0 + 0.5  # of one call, by the timeouts of this backend
    with load(service, "wide") as watched:
        if fault == "reset":
            service.kms.fault("reset", region=HOME)
        else:
            service.kms.fault("latency", region=HOME, seconds=8)
        cut = time.monotonic()
        elsewhere = service.kms.calls("Sign", REPLICA)
        wait_until(lambda: watched.signs(cut + 0.1), bound, "signing elsewhere")
        assert service.kms.calls("Sign", REPLICA) > elsewhere
        time.sleep(1)
        assert not is_down(service, "wide")
        service.kms.clear_faults()
        at_home = len([one for one in service.kms.signs() if one.region == HOME])
        wait_until(
            lambda: len([one for one in service.kms.signs() if one.region == HOME]) > at_home + 10,
            bound + 4 * OPEN_SECONDS,
            "signing at home",
        )
    refused = [one.answer.body for one in watched.main.signing() if one.status != 200 if one.answer]
    assert refused == [], service.server.logged()[-1500:]
    assert max(one.seconds for one in watched.main.signing()) < bound + 0.5
