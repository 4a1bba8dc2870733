"""SoftHSM in a process of its own, behind `p11-kit server`, to be killed and stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.softhsm import LABEL, Token

_HINT = "apt-get install p11-kit p11-kit-modules"


class P11KitServer:
    """The token process. Signals reach it and its per-connection children alike."""

    def __init__(self, token: Token, directory: Path) -> None:
        self._token, self._socket = token, directory / "p11-kit.sock"
        self._pid_file = _pid_file(directory)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("p11-kit")
        assert program is not None, f"p11-kit is missing: {_HINT}"
        self._socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [program, "server", "--foreground", "--name", str(self._socket), "--provider",
             self._token.module, f"pkcs11:token={LABEL}"],
            env={**os.environ, "SOFTHSM2_CONF": str(self._token.conf)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self._pid_file.write_text(str(self._process.pid))
        deadline = time.monotonic() + 10
        while not self._socket.exists():
            assert time.monotonic() < deadline, "p11-kit server did not come up"
            assert self._process.poll() is None, "p11-kit server ended at once"
            time.sleep(0.01)

    def stop(self) -> None:
        """SIGSTOP: the module hangs."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
            self._pid_file.unlink()

    def restart(self) -> None:
        self.kill()
        self.start()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def options(self, **changes: Any) -> dict[str, Any]:
        """The table [backends.NAME] without ``type``, for p11-kit's client module."""
        return self._token.options(
            module_path=str(client_module()),
            environment={"P11_KIT_SERVER_ADDRESS": f"unix:path={self._socket}"},
            **changes,
        )


def end_left_behind(directory: Path) -> None:
    """End the server that a process which was itself killed had started there."""
    with suppress(FileNotFoundError, ProcessLookupError):
        os.killpg(int(_pid_file(directory).read_text()), signal.SIGKILL)


def _pid_file(directory: Path) -> Path:
    return directory / "p11-kit.pid"


def client_module() -> Path:
    candidates = [
        *Path("/usr/lib").glob("*/pkcs11/p11-kit-client.so"),
        Path("/usr/lib64/pkcs11/p11-kit-client.so"),
        Path("/usr/lib/pkcs11/p11-kit-client.so"),
    ]
    found = next((path for path in candidates if path.exists()), None)
    assert found is not None, f"p11-kit-client.so is missing: {_HINT}"
    return found
