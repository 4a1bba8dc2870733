"""A test's hold on the fake: start, stop, kill, pause, restart it, and give it faults."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ACCOUNT = "111122223333"
_START_TIMEOUT = 30.0  # seconds
_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class SignRecord:
    """One Sign request that the fake carried out: ``asked`` is its KeyId, ``key`` the ARN that this
    named; ``length`` of its Message in bytes."""

    asked: str
    key: str
    region: str
    algorithm: str
    message_type: str
    length: int
    dry_run: bool


class FakeKms:
    """The fake in a process of its own, at ``endpoint``; one serves every Region and STS."""

    def __init__(self, **settings: Any) -> None:
        """``settings``: those of ``tests.support.kms.store.Settings``; they outlive a restart."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._settings = settings
        self._directory = tempfile.TemporaryDirectory(prefix="fake-kms-")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _state(self) -> Path:
        return Path(self._directory.name) / "state.json"

    def start(self) -> None:
        words = ["--port", str(self.port), "--state", str(self._state)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.kms", *words,
             "--settings", json.dumps(self._settings)],
            cwd=_ROOT,
        )  # fmt: skip
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            assert self._process.poll() is None, "the fake KMS did not start"
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.01)
        raise AssertionError("the fake KMS does not listen")

    def kill(self) -> None:
        """SIGKILL; refused until ``start``. Keys are kept; faults and counts are not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """For good: the state goes too."""
        self.kill()
        self._directory.cleanup()

    def restart(self, *, keep: bool = True) -> None:
        """Again at the same endpoint, with its keys or (``keep`` false) without any."""
        self.kill()
        if not keep:
            self._state.unlink(missing_ok=True)
        self.start()

    def is_running(self) -> bool:
        """Also where it is paused."""
        return self._process is not None

    def pause(self) -> None:
        """SIGSTOP: connections are accepted by the kernel and never answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the fake KMS does not run"
        os.kill(self._process.pid, number)

    def fault(self, kind: str, **options: Any) -> None:
        """Add a fault: see ``tests.support.kms.faults.Fault`` for kinds and options."""
        self._order("fault", kind=kind, **options)

    def throttle(self, **options: Any) -> None:
        self.error("ThrottlingException", message="Rate exceeded", **options)

    def error(self, code: str, **options: Any) -> None:
        """Answer with the exception ``code``; KMSInternalException and the like with 500."""
        status = {"KMSInternalException": 500, "KeyUnavailableException": 500,
                  "DependencyTimeoutException": 503}.get(code, 400)  # fmt: skip
        self.fault("error", **{"code": code, "status": status, **options})

    def clear_faults(self) -> None:
        self._order("clear-faults")

    def settings(self, **settings: Any) -> None:
        """Change settings while it runs."""
        self._settings = {**self._settings, **settings}
        self._order("settings", **settings)

    def deny(self, *actions: str, region: str = "*", resource: str = "*") -> None:
        """Refuse these actions (``kms:Sign``) from now on; none given allows everything again."""
        rules = [{"action": action, "region": region, "resource": resource} for action in actions]
        self.settings(denied=rules)

    def advance(self, seconds: float) -> None:
        """Move the fake's clock forward, so that a scheduled deletion becomes final."""
        self._order("advance", seconds=seconds)

    def calls(self, operation: str, region: str | None = None) -> int:
        """How often ``operation`` was asked for, refusals and faults included."""
        counts = self._order("calls")["calls"]
        return sum(
            count["calls"]
            for count in counts
            if count["operation"] == operation and region in (None, count["region"])
        )

    def signs(self) -> list[SignRecord]:
        """Every Sign that was carried out (a DryRun too), in order."""
        return [SignRecord(**record) for record in self._order("calls")["signs"]]

    def forget_calls(self) -> None:
        self._order("forget-calls")

    def _order(self, name: str, **order: Any) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("POST", "/_control", json.dumps({"do": name, **order}))
            answer = connection.getresponse()
            body = json.loads(answer.read())
        finally:
            connection.close()
        assert answer.status == 200, body
        return body
