"""nginx from the distribution, with a configuration of the documents."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tests.support.http import Answer, read_response
from tests.support.service import free_port

_START_TIMEOUT = 10.0  # seconds


def documented(document: Path, language: str) -> str:
    """The only block of this language."""
    text = document.read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    return str(block)


class Nginx:
    """One process, in the foreground, on a loopback port."""

    def __init__(self, directory: Path, server: str, replace: Mapping[str, str]) -> None:
        """``server`` is a block ``server {}`` in which ``replace`` is put for what is of the
        machine, each of which has to be there."""
        self.port = free_port()
        for old, new in {**replace, "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl"}.items():
            assert old in server
            server = server.replace(old, new)
        temporary = "\n".join(
            f"{kind}_temp_path {directory}/nginx-{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        self._config = directory / "nginx.conf"
        self._config.write_text(
            "daemon off;\nmaster_process off;\nerror_log stderr;\n"
            f"pid {directory}/nginx.pid;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}\n{server}\n}}\n"
        )
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        with (self._directory / "nginx.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-p", str(self._directory), "-e", "stderr", "-c", str(self._config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                self.ask("GET /healthz HTTP/1.1\r\n")
            except OSError:
                assert self._process.poll() is None, self.logged()
                assert time.monotonic() < deadline, self.logged()
                time.sleep(0.02)
            else:
                return

    def logged(self) -> str:
        return (self._directory / "nginx.log").read_text("utf-8", "replace")

    def ask(self, head: str, certificate: Path | None = None) -> Answer:
        """``head`` is a request line with headers; ``certificate`` with its key, in PEM.

        Raises:
            OSError
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if certificate is not None:
            context.load_cert_chain(certificate)
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain,
            context.wrap_socket(plain) as connection,
        ):
            connection.sendall(f"{head}Host: x\r\nConnection: close\r\n\r\n".encode())
            return read_response(connection)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
