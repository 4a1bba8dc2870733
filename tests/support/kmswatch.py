"""Load on a service on AWS KMS, and what must hold of every answer whatever KMS does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.awskms import HOME
from tests.support.http import Answer
from tests.support.kms import ACCOUNT
from tests.support.kmsservice import KmsService, percentile
from tests.support.load import Load, Seen, wait_until

READING_LIMIT = 0.5  # seconds for 99 of 100 reads of the JWKS and health, whatever KMS does


@dataclass(frozen=True)
class Watched:
    """Load on one keyset of KMS with the readers, and on a keyset of SoftHSM."""

    service: KmsService
    main: Load
    soft: Load
    keyset: str
    recorded: frozenset[str]

    def signs(self, since: float, enough: int = 10) -> bool:
        return sum(one.status == 200 for one in self.main.signing(since)) >= enough

    def wait_signing(self, seconds: float) -> float:
        since = time.monotonic()
        return wait_until(lambda: self.signs(since), seconds, "signing")

    def assert_well_behaved(self) -> None:
        """Only tokens that verify and are recorded; the rest as if nothing had happened."""
        assert self.main.failed_connections() == self.soft.failed_connections() == 0
        assert {one.status for one in self.soft.signing()} == {200}
        assert {one.status for one in self.main.reading()} == {200}
        assert percentile(self.main.reading(), 0.99) < READING_LIMIT
        assert percentile(self.soft.signing(), 0.99) < READING_LIMIT
        tokens, soft = self.main.tokens(), self.soft.tokens()
        assert tokens
        released = self.service.verify(self.keyset, tokens) | self.service.verify("soft", soft)
        assert len(released) == len(tokens) + len(soft)
        recorded = self.service.recorded()
        assert len(recorded) == len(set(recorded))
        assert set(recorded) - self.recorded == released


@contextmanager
def load(service: KmsService, keyset: str = "es", signers: int = 6) -> Iterator[Watched]:
    before = frozenset(service.recorded())
    main = Load(service.server, keyset, signers=signers)
    soft = Load(service.server, "soft", signers=1, readers=0)
    watched = Watched(service, main, soft, keyset, before)
    with main.running(), soft.running():
        watched.wait_signing(5)
        yield watched
    watched.assert_well_behaved()


def assert_problem(answer: Answer | None, status: int, *codes: str) -> None:
    """A refusal as a client needs it, which tells nothing of the account."""
    assert answer is not None
    assert (answer.status, answer.header("Content-Type")) == (status, "application/problem+json")
    assert answer.header("Cache-Control") == "no-store"
    assert 1 <= int(answer.header("Retry-After")) <= 60
    problem = answer.json()
    assert problem["code"] in codes
    assert problem["request_id"] == answer.header("X-Request-Id") != ""
    assert not any(told in answer.body.decode() for told in ("arn:", ACCOUNT, HOME, "eyJ"))


def is_retryable(one: Seen) -> bool:
    if one.status == 200:
        return False
    assert_problem(one.answer, 503, "backend-unavailable", "overloaded")
    return True
