"""`signing.verification` over a backend that turns bad: what leaves the service, and what never."""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import jwt
import pytest

from kmsjwks import bootstrap
from kmsjwks.bootstrap import Service, build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.access import Action, Grant, Principal
from kmsjwks.domain.errors import BackendError, BackendProtocolError, KmsJwksError
from kmsjwks.domain.jwk import public_jwk
from kmsjwks.domain.ports import BackendKey
from kmsjwks.domain.sampling import SamplingPlan
from kmsjwks.services.checkpointing import CheckpointSigner
from kmsjwks.services.signing import Caller, SignRequest
from tests.support.lifecycle import OPERATOR, spec
from tests.support.wiring import LastingBackend, install_backend_type, write_config

CALLER = Caller(Principal("alice", (Grant(frozenset({Action.SIGN}), ("*",)),)), "r-1")
PLAN = SamplingPlan()
Make = Callable[[str], Service]


class TurningBackend(LastingBackend):
    """Its signatures are damaged while ``bad`` holds of the number of the signature."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.bad: Callable[[int], bool] = lambda number: False

    def sign(self, key: BackendKey, message: bytes) -> bytes:
        signature = super().sign(key, message)
        self.asked += 1
        if self.bad(self.asked):
            return bytes([signature[0] ^ 1, *signature[1:]])
        return signature

    def turn(self, *, bad: bool) -> None:
        self.bad = lambda number: bad


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> TurningBackend:
    made = TurningBackend()
    install_backend_type(monkeypatch, made)
    return made


@pytest.fixture
def make(backend: TurningBackend, tmp_path: Path) -> Iterator[Make]:
    made: list[Service] = []

    def service(verification: str) -> Service:
        tables = (
            f'[signing]\nverification = "{verification}"\n'
            '[audit]\ncheckpoint_keyset = "notary"\n[snapshot]\nrefresh_interval = 3600.0\n'
        )
        settings = load(write_config(tmp_path, tables), environ={})
        prepare_database(settings)
        made.append(build(settings, {}))
        made[0].keysets.create(spec(), OPERATOR)
        made[0].keysets.create(spec("notary"), OPERATOR)
        return made[0]

    yield service
    backend.turn(bad=False)
    for one in made:
        one.close()


def token(service: Service) -> str:
    return service.signing.sign_jwt(CALLER, "demo", SignRequest({"sub": "a"})).token


def verifies(service: Service, signed: str) -> bool:
    kid = jwt.get_unverified_header(signed)["kid"]
    (key,) = [key for key in service.store.keys("demo") if key.kid == kid]
    jwk = jwt.PyJWK(dict(public_jwk(key.spki, key.algorithm)))
    try:
        jwt.decode(signed, jwk, algorithms=["ES256"], options={"verify_aud": False})
    except jwt.InvalidSignatureError:
        return False
    return True


def refresh_anew(service: Service) -> None:
    """Take another snapshot, as any change in the database does."""
    before = service.snapshots.current()
    service.keysets.create(spec(f"other-{before.revision}"), OPERATOR)
    service.snapshots.refresh()
    assert service.snapshots.current() is not before


def test_under_always_no_bad_token_leaves(make: Make, backend: TurningBackend) -> None:
    service = make("always")
    token(service)
    backend.bad = lambda number: number % 3 == 0
    refused = 0
    for _ in range(90):
        try:
            assert verifies(service, token(service))
        except BackendProtocolError:
            refused += 1
    assert refused == 30


def test_sampled_finds_a_backend_that_turned_bad_and_then_verifies_all(
    make: Make,
    backend: TurningBackend,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(secrets, "SystemRandom", lambda: random.Random(6))
    service = make("sampled")
    for _ in range(PLAN.first + 50):
        assert verifies(service, token(service))
    backend.turn(bad=True)
    released = 0
    with pytest.raises(BackendProtocolError), caplog.at_level(logging.ERROR):
        for _ in range(200):
            assert not verifies(service, token(service))
            released += 1
    (said,) = [record for record in caplog.records if record.name == bootstrap.__name__]
    kid = service.snapshots.current().keysets["demo"].timeline[0][1].key.kid
    assert isinstance(said.args, tuple)
    assert said.args[0] == kid
    assert isinstance(said.args[2], int)
    assert said.args[2] >= released > 0
    for _ in range(20):
        with pytest.raises(BackendProtocolError):
            token(service)
    backend.turn(bad=False)
    refresh_anew(service)
    for number in range(300):
        backend.turn(bad=number % 2 == 0)
        if number % 2 == 0:
            with pytest.raises(BackendProtocolError):
                token(service)
        else:
            assert verifies(service, token(service))


def test_sampling_goes_on_over_snapshots(
    make: Make, backend: TurningBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_again = SamplingPlan(one_in=10**12, longest=3600)
    monkeypatch.setattr(bootstrap, "SamplingPlan", lambda: never_again)
    service = make("sampled")
    for _ in range(PLAN.first):
        token(service)
    refresh_anew(service)
    backend.turn(bad=True)
    assert not verifies(service, token(service))


def test_the_first_signatures_of_a_process_are_verified(
    make: Make, backend: TurningBackend
) -> None:
    service = make("sampled")
    for _ in range(PLAN.first - 1):
        token(service)
    backend.turn(bad=True)
    with pytest.raises(BackendProtocolError):
        token(service)


def test_off_releases_what_the_backend_says(make: Make, backend: TurningBackend) -> None:
    service = make("off")
    backend.turn(bad=True)
    assert not verifies(service, token(service))


@pytest.mark.parametrize("verification", ["sampled", "off"])
def test_a_new_key_is_tried_out_whatever_is_set(
    make: Make, backend: TurningBackend, verification: str
) -> None:
    service = make(verification)
    backend.turn(bad=True)
    with pytest.raises(KmsJwksError):
        service.keysets.create(spec("new"), OPERATOR)
    assert [one.name for one in service.store.keysets()] == ["demo", "notary"]


def test_a_checkpoint_is_verified_whatever_is_set(make: Make, backend: TurningBackend) -> None:
    service = make("off")
    token(service)
    signer = CheckpointSigner("notary", service.snapshots, service.audit, service.clock)
    backend.turn(bad=True)
    with pytest.raises(BackendError, match="checkpoint was not released"):
        signer.sign()
    backend.turn(bad=False)
    assert signer.sign() is not None


@pytest.mark.parametrize("verification", ["always", "sampled", "off"])
def test_the_verify_endpoint_knows_a_bad_signature(
    make: Make, backend: TurningBackend, verification: str
) -> None:
    service = make(verification)
    for _ in range(PLAN.first + 1):
        good = token(service)
    ready = service.snapshots.current().keysets["demo"]
    _, verify = ready.verifiers[jwt.get_unverified_header(good)["kid"]]
    assert not any(verify(b"another message", bytes(64)) for _ in range(200))
