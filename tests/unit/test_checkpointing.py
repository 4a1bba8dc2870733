"""Checkpoints: signed by the keyset's key, recorded, published in order, never in the way."""

from __future__ import annotations

import json
import logging
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from kmsjwks.bootstrap import Service, build, checkpoint_plan, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.access import Action, Grant, Principal
from kmsjwks.domain.audit import ChainHead
from kmsjwks.domain.audittrail import Status
from kmsjwks.domain.checkpointproof import CheckpointKeys, CheckpointProof, prove_checkpoints
from kmsjwks.domain.checkpoints import first_gap
from kmsjwks.domain.documents import make_document
from kmsjwks.domain.errors import BackendUnavailable, PublicationFailed
from kmsjwks.domain.jwk import public_jwk
from kmsjwks.publishing.endpoints import EndpointTarget
from kmsjwks.services.checkpointing import Checkpointer, CheckpointSigner
from kmsjwks.services.signing import Caller, SignRequest
from kmsjwks.storage.audit_checkpoints import read_checkpoints
from kmsjwks.storage.audit_reader import AuditReader
from tests.fakes import FakeBackend
from tests.support.audit import verified_records
from tests.support.lifecycle import OPERATOR, spec
from tests.support.wiring import LastingBackend, install_backend_type, write_config

CALLER = Caller(Principal("alice", (Grant(frozenset({Action.SIGN}), ("*",)),)), "r-1")
AUDIT = """
[audit]
directory = "audit"
checkpoint_keyset = "notary"
checkpoint_targets = ["outside"]
"""


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    made = LastingBackend()
    install_backend_type(monkeypatch, made)
    return made


@pytest.fixture
def service(backend: FakeBackend, tmp_path: Path) -> Iterator[Service]:
    settings = load(write_config(tmp_path, AUDIT), environ={})
    prepare_database(settings)
    made = build(settings, {})
    made.keysets.create(spec(), OPERATOR)
    made.keysets.create(spec("notary"), OPERATOR)
    yield made
    made.close()


def checkpointer(service: Service) -> Checkpointer:
    assert service.checkpoints is not None
    return service.checkpoints


def sign(service: Service) -> None:
    service.signing.sign_jwt(CALLER, "demo", SignRequest({"sub": "a"}))


def proof(service: Service, place: Path) -> CheckpointProof:
    keys = [public_jwk(key.spki, key.algorithm) for key in service.store.keys("notary")]
    return prove_checkpoints(read_checkpoints(place), CheckpointKeys(keys))


def test_a_checkpoint_names_the_head_and_is_recorded_and_kept_in_two_places(
    service: Service, tmp_path: Path
) -> None:
    sign(service)
    head = service.audit.head()
    checkpointer(service).once()
    for place in (tmp_path / "audit" / "checkpoints", tmp_path / "outside"):
        (one,) = proof(service, place).proved
        assert head is not None
        (named,) = one.checkpoint.heads
        assert (named.chain, named.seq, named.sha256) == (head.chain, head.seq, head.sha256)
    last = verified_records(tmp_path / "audit")[-1]
    assert (last["event"], last["checkpoint"]) == ("checkpoint.signed", one.checkpoint.sha256)
    assert (last["keyset"], last["kid"]) == ("notary", one.kid)


def test_its_own_record_is_no_reason_for_another(service: Service, tmp_path: Path) -> None:
    sign(service)
    for _ in range(3):
        checkpointer(service).once()
    sign(service)
    for _ in range(3):
        checkpointer(service).once()
    found = proof(service, tmp_path / "outside")
    assert (len(found.proved), found.problems) == (2, ())
    assert first_gap(one.checkpoint for one in found.proved) is None


def test_a_change_of_files_is_no_reason_either(
    backend: FakeBackend, tmp_path: Path, service: Service
) -> None:
    service.close()
    settings = load(write_config(tmp_path, AUDIT + "max_file_bytes = 4096\n"), environ={})
    made = build(settings, {})
    while len(list((tmp_path / "audit").glob("audit-*.jsonl"))) < 4:
        sign(made)
        checkpointer(made).once()
        seen = len(list((tmp_path / "outside").iterdir()))
        checkpointer(made).once()
        assert len(list((tmp_path / "outside").iterdir())) == seen
    made.close()


def test_the_end_of_the_chain_is_covered(service: Service, tmp_path: Path) -> None:
    sign(service)
    checkpointer(service).once()
    service.close()
    found = proof(service, tmp_path / "outside")
    assert (len(found.proved), found.problems) == (2, ())
    report = AuditReader(tmp_path / "audit").verify(one.checkpoint for one in found.proved)
    (chain,) = report.chains
    assert (chain.status, chain.problem) == (Status.CLOSED, None)
    assert found.proved[-1].checkpoint.heads[0].seq == chain.records - 1
    events = [one["event"] for one in verified_records(tmp_path / "audit")]
    assert events[-3:] == ["checkpoint.final", "audit.closing", "audit.closed"]


def test_without_its_backend_it_is_late_and_said_once(
    service: Service, backend: FakeBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sign(service)
    backend.break_with(BackendUnavailable("The token is gone."))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            checkpointer(service).once()
        assert [one.message for one in caplog.records] == [
            "Checkpoints of the audit trail are late (signing): The token is gone."
        ]
        backend.break_with(None)
        checkpointer(service).once()
    assert "work again (signing)" in caplog.records[-1].message
    assert len(proof(service, tmp_path / "outside").proved) == 1


def test_a_process_ends_its_chain_without_the_backend_too(
    service: Service, backend: FakeBackend, tmp_path: Path
) -> None:
    sign(service)
    backend.break_with(BackendUnavailable("The token is gone."))
    service.close()
    (chain,) = AuditReader(tmp_path / "audit").verify().chains
    assert chain.status is Status.CLOSED


def test_a_target_that_was_down_gets_all_in_order(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "outside").write_text("in the way")
    for _ in range(3):
        sign(service)
        checkpointer(service).once()
    assert len([one for one in caplog.records if "are late" in one.message]) == 1
    (tmp_path / "outside").unlink()
    sign(service)
    checkpointer(service).once()
    found = proof(service, tmp_path / "outside")
    assert (len(found.proved), found.problems) == (4, ())


def test_without_its_keyset_it_says_how_to_make_it(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service.close()
    text = AUDIT.replace("notary", "nobody")
    made = build(load(write_config(tmp_path, text), environ={}), {})
    sign(made)
    checkpointer(made).once()
    made.close()
    assert "'kmsjwks keysets create'" in caplog.text
    assert all(one.problem is None for one in AuditReader(tmp_path / "audit").verify().chains)


class _Collector(BaseHTTPRequestHandler):
    status = 201
    taken: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.taken.append((self.headers["Idempotency-Key"], body))
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("status", "taken"), [(201, True), (409, False)])
def test_an_endpoint_gets_each_by_post(status: int, taken: bool) -> None:
    handler = type("Handler", (_Collector,), {"status": status, "taken": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        target = EndpointTarget(f"http://127.0.0.1:{server.server_port}/keep?key=secret")
        assert target.publish("a", make_document(b"b", "application/jose", "no-store")) is taken
        server.shutdown()
    assert handler.taken == [("a", b"b")]  # type: ignore[attr-defined]


@pytest.mark.parametrize("status", [301, 401, 500])
def test_an_endpoint_that_refuses_is_named_without_its_secret(status: int) -> None:
    handler = type("Handler", (_Collector,), {"status": status, "taken": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        target = EndpointTarget(f"http://127.0.0.1:{server.server_port}/keep?key=secret")
        with pytest.raises(PublicationFailed, match=f"/keep did not take it: it answers {status}"):
            target.publish("a", make_document(b"b", "application/jose", "no-store"))
        server.shutdown()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('checkpoint_keyset = "Not One"', "must be the name of a keyset"),
        ('checkpoint_targets = ["http://far.example/x"]', "must be https"),
        ('checkpoint_targets = ["https://u:p@far.example/x"]', "neither user name"),
        ('checkpoint_targets = ["ftp://far.example/x"]', "no other scheme"),
        ("checkpoint_interval = 0", "between"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        load(write_config(tmp_path, f"[audit]\n{text}\n"), environ={})


def test_the_payload_is_what_the_document_says(service: Service, tmp_path: Path) -> None:
    sign(service)
    checkpointer(service).once()
    (path,) = (tmp_path / "outside").iterdir()
    head, body, _ = path.read_text().strip().split(".")
    assert path.name.startswith("checkpoint-") and path.name.endswith(".jws")
    decoded = [_decode(part) for part in (head, body)]
    assert set(decoded[0]) == {"alg", "kid", "typ"}
    assert decoded[0]["typ"] == "kmsjwks-checkpoint+jwt"
    assert set(decoded[1]) == {"kind", "time", "previous", "heads"}


def _decode(part: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


class Others:
    def __init__(self) -> None:
        self.unsigned = [ChainHead(f"{number:016x}", number, "c" * 64) for number in range(20)]

    def heads(self, own: str) -> list[ChainHead]:
        return [one for one in self.unsigned if one.chain != own]

    def signed(self, heads: Sequence[ChainHead]) -> None:
        self.unsigned = [one for one in self.unsigned if one not in heads]


def test_chains_that_were_left_are_signed_for_once(service: Service, tmp_path: Path) -> None:
    others = Others()
    left = [*others.unsigned]
    plan = checkpoint_plan(service.settings, {})
    assert plan is not None
    signer = CheckpointSigner("notary", service.snapshots, service.audit, service.clock, others)
    sign(service)
    made = Checkpointer(signer, plan)
    for _ in range(4):
        made.once()
    found = proof(service, tmp_path / "outside")
    assert found.problems == ()
    heads = [one.checkpoint.heads for one in found.proved]
    own = service.audit.head()
    assert own is not None
    assert [len(one) for one in heads] == [17, 5]
    assert {one[0].chain for one in heads} == {own.chain}
    assert [*heads[0][1:], *heads[1][1:]] == left
