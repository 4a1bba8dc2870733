"""moto's AWS in a process of its own: real HTTP between boto3 and it, and it can be stopped."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import suppress

_START_TIMEOUT = 30.0  # seconds


class MotoServer:
    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        program = "from moto.server import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
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

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
