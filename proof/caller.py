"""The caller: asks a random replica for a token, and the next one when that fails."""

from __future__ import annotations

import base64
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from proof.plan import AUDIENCE, KEYSET, SIGN_TIMEOUT
from proof.record import Record, Token
from tests.support.http import Answer, Http

_BETWEEN_ROUNDS = 0.02  # seconds, when no replica gave a token


class Caller:
    """One thread that signs ``rate`` tokens a second until it is told to stop."""

    def __init__(
        self,
        replicas: Sequence[tuple[str, Http]],
        rate: float,
        record: Record,
        deliver: Callable[[Token], None],
        keyset: str = KEYSET,
    ) -> None:
        self._replicas, self._rate = list(replicas), rate
        self._record, self._deliver = record, deliver
        self._path, self._keyset = f"/v1/keysets/{keyset}/sign/jwt", keyset
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caller", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the caller hangs"

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self._sign_somewhere()
            due = max(due + 1 / self._rate, time.monotonic() - 1)  # catches up, but not for ever
            self._stop.wait(max(0.0, due - time.monotonic()))
        self._record.end_signing(time.time())

    def _sign_somewhere(self) -> None:
        while not self._stop.is_set():
            for name, http in random.sample(self._replicas, len(self._replicas)):
                token = self._sign_at(name, http)
                if token is not None:
                    self._record.add_token(token)
                    self._deliver(token)
                    return
            self._stop.wait(_BETWEEN_ROUNDS)

    def _sign_at(self, name: str, http: Http) -> Token | None:
        body = {"claims": {"sub": "alice", "aud": AUDIENCE}}
        try:
            answer: Answer = http.post(self._path, body)
        except OSError as error:
            self._record.add_sign_failure(f"{self._keyset} at {name}: {type(error).__name__}")
            return None
        if answer.status != 200:
            title = f"HTTP {answer.status} {_title(answer)}"
            self._record.add_sign_failure(f"{self._keyset} at {name}: {title}")
            return None
        return _read(answer.json())


def connections(ports: dict[str, int], bearer: str) -> list[tuple[str, Http]]:
    return [(name, Http(port, bearer, SIGN_TIMEOUT)) for name, port in ports.items()]


def _title(answer: Answer) -> str:
    """Of the problem (RFC 9457)."""
    try:
        return str(answer.json()["title"])
    except (ValueError, KeyError):
        return answer.body[:80].decode("utf-8", "replace")


def _read(answer: dict[str, Any]) -> Token:
    text: str = answer["token"]
    payload = text.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return Token(text, answer["kid"], time.time(), claims["iat"], claims["exp"])
