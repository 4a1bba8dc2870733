"""A small HTTP/1.1 client that hides nothing: no redirects, no retries, raw header values."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """``seconds`` from the first byte sent to the last byte received."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float

    def header(self, name: str) -> str:
        return str(self.headers.get(name, ""))

    def json(self) -> Any:
        return json.loads(self.body)


class Http:
    """One connection, kept alive between calls. For one thread."""

    def __init__(self, port: int, token: str | None = None, timeout: float = 10.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self._headers = {"Authorization": f"Bearer {token}"} if token is not None else {}

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: Any) -> Answer:
        return self.request("POST", path, json.dumps(body).encode(), JSON)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """
        Raises:
            OSError: the connection failed or was closed; http.client's errors are turned into it.
        """
        started = time.monotonic()
        try:
            with suppress(BrokenPipeError):  # the answer may be there already; urllib3 does so too
                self._connection.request(method, path, body, {**self._headers, **(headers or {})})
            response = self._connection.getresponse()
            content = response.read()
        except http.client.HTTPException as error:
            self._connection.close()
            raise ConnectionError(type(error).__name__) from error
        except OSError:
            self._connection.close()
            raise
        return Answer(response.status, response.headers, content, time.monotonic() - started)

    def close(self) -> None:
        self._connection.close()


def raw(port: int, data: bytes, timeout: float = 10.0) -> Answer:
    """Send bytes as they are, and read one response even where the rest cannot be sent."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        return read_response(connection, started)


def read_response(connection: socket.socket, started: float | None = None) -> Answer:
    """
    Raises:
        OSError: it was closed instead.
    """
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        content = response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(type(error).__name__) from error
    return Answer(response.status, response.headers, content, time.monotonic() - (started or 0))
