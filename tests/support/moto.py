"""moto's AWS in a process of its own: real HTTP between boto3 and it, and it can be stopped."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_START_TIMEOUT = 30.0  # seconds
_ROOT = Path(__file__).parents[2]


class MotoServer:
    """moto as it is; for S3."""

    _program: tuple[str, ...] = ("-c", "from moto.server import main; main()")

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [sys.executable, *self._program, "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=_ROOT,
        )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "moto's server did not start"
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise AssertionError("moto's server does not listen")

    def freeze(self) -> None:
        """Connections are taken by the kernel; nothing is answered any more."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class CorrectedMoto(MotoServer):
    """moto with its KMS corrected to AWS's documents: `tests.support.kms.moto_corrections`."""

    _program = ("-m", "tests.support.kms.moto_corrections")
