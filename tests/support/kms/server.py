"""The fake's HTTP: JSON 1.1 for KMS, the query protocol for STS, and the tests' control path."""

from __future__ import annotations

import base64
import json
import socket
import struct
import sys
import time
import uuid
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.kms import access
from tests.support.kms.api import Api
from tests.support.kms.errors import AwsError
from tests.support.kms.faults import Calls, Fault, Faults, delay
from tests.support.kms.store import Settings, Store

CONTROL = "/_control"
_JSON = "application/x-amz-json-1.1"
_IDENTITY = (
    '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
    "<GetCallerIdentityResult><Arn>{arn}</Arn><UserId>AIDATESTS</UserId>"
    "<Account>{account}</Account></GetCallerIdentityResult><ResponseMetadata>"
    "<RequestId>{request}</RequestId></ResponseMetadata></GetCallerIdentityResponse>"
)
_STS_ERROR = (
    '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
    "<Code>{code}</Code><Message>{message}</Message></Error>"
    "<RequestId>{request}</RequestId></ErrorResponse>"
)


class KmsServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, state: Path | None, settings: Settings) -> None:
        self.settings, self.store = settings, Store(state)
        self.faults, self.calls = Faults(), Calls()
        self.api = Api(self.store, settings, self.calls)
        super().__init__(("127.0.0.1", port), _Handler)

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """A connection that lingers for 0 s is closed without a FIN, which makes a reset of it."""
        assert isinstance(request, socket.socket)
        if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER):
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no error here; anything else shows in the test's output."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def control(self, order: dict[str, Any]) -> object:
        """Carry out one order of a test; the answer is JSON."""
        match order.pop("do"):
            case "fault":
                self.faults.add(Fault(**order))
            case "clear-faults":
                self.faults.clear()
            case "settings":
                self._change(order)
            case "advance":
                with self.store.lock:
                    self.store.advance(order["seconds"])
            case "calls":
                return {"calls": self.calls.report(), "signs": self.calls.signs()}
            case "forget-calls":
                self.calls.clear()
            case unknown:
                raise AssertionError(f"no order {unknown!r}")
        return None

    def _change(self, order: dict[str, Any]) -> None:
        known = {field.name for field in fields(Settings)}
        assert order.keys() <= known, f"no settings {order.keys() - known}"
        with self.store.lock:
            for name, value in order.items():
                setattr(self.settings, name, value)


class _Handler(BaseHTTPRequestHandler):
    server: KmsServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *args: object) -> None:
        """Silence: tests read the calls over the control path."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == CONTROL:
            self._control(body)
        elif self.headers.get("X-Amz-Target") is None and b"Action=" in body:
            self._sts(body)
        else:
            self._kms(body)

    def _control(self, body: bytes) -> None:
        try:
            answer, status = self.server.control(json.loads(body)), 200
        except (AssertionError, TypeError) as error:
            answer, status = {"error": str(error)}, 400
        self._send(status, json.dumps(answer).encode())

    def _sts(self, body: bytes) -> None:
        words = {"request": str(uuid.uuid4()), "account": self.server.settings.account}
        self._observe("GetCallerIdentity", self._region())
        faults = self._before("GetCallerIdentity", self._region())
        try:
            if faults and self._disturb(faults, None):
                return
            if b"Action=GetCallerIdentity" not in body:
                raise AwsError("InvalidAction", "This fake has GetCallerIdentity only.")
            self.server.api.access.authenticate(access.caller(self.headers.get("Authorization")))
        except AwsError as error:
            text = _STS_ERROR.format(code=error.code, message=error.message, **words)
            self._send(error.status, text.encode(), "text/xml")
            return
        text = _IDENTITY.format(arn=self.server.api.access.user, **words)
        self._send(200, text.encode(), "text/xml")

    def _kms(self, body: bytes) -> None:
        prefix, _, operation = self.headers.get("X-Amz-Target", "").partition(".")
        region = self._region()
        self._observe(operation, region)
        faults = self._before(operation, region)
        try:
            caller = access.caller(self.headers.get("Authorization"))
            if prefix != "TrentService" or self.headers.get("Content-Type") != _JSON:
                raise AwsError("UnknownOperationException")
            if faults and not _runs(faults[0]) and self._disturb(faults, None):
                return
            answer = self.server.api.answer(operation, caller, _parsed(body))
            if faults and self._disturb(faults, answer):
                return
        except AwsError as error:
            self._refuse(error)
            return
        self._send(200, b"{}" if answer is None else json.dumps(answer).encode())

    def _region(self) -> str:
        try:
            return access.caller(self.headers.get("Authorization")).region
        except AwsError:
            return "none"

    def _observe(self, operation: str, region: str) -> None:
        self.server.calls.count(operation, region)

    def _before(self, operation: str, region: str) -> list[Fault]:
        """Wait out the latency; the other faults are left to do."""
        faults = self.server.faults.take(operation, region)
        for fault in faults:
            if fault.kind == "latency":
                time.sleep(delay(fault))
        return [fault for fault in faults if fault.kind != "latency"]

    def _disturb(self, faults: list[Fault], answer: dict[str, Any] | None) -> bool:
        """Do the fault; true when the caller has been answered, or never will be."""
        fault = faults[0]
        match fault.kind:
            case "error":
                raise AwsError(fault.code, fault.message, fault.status)
            case "rate":
                raise AwsError("ThrottlingException", "Rate exceeded")
            case "status":
                self._send(fault.status, b"")
            case "reset":
                self._abort(reset=True)
            case "close":
                self._abort(reset=False)
            case "garbage":
                self._send(200, b"<html>this is not JSON {")
            case "truncate":
                self._send(200, json.dumps(answer or {}).encode(), half=True)
                self._abort(reset=False)
            case "answer" | "wrong-signature":
                self._send(200, json.dumps(_altered(answer or {}, fault)).encode())
        return True

    def _abort(self, *, reset: bool) -> None:
        """End the connection, with a TCP reset if ``reset``."""
        self.close_connection = True
        self.wfile.flush()
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def _refuse(self, error: AwsError) -> None:
        member = "Message" if error.code == "AccessDeniedException" else "message"
        document = {"__type": error.code, **({member: error.message} if error.message else {})}
        self._send(error.status, json.dumps(document).encode())

    def _send(
        self, status: int, body: bytes, content_type: str = _JSON, *, half: bool = False
    ) -> None:
        self.send_response(status)
        self.send_header("x-amzn-RequestId", str(uuid.uuid4()))
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        self.wfile.flush()


def _runs(fault: Fault) -> bool:
    """Whether the operation takes effect although its answer is disturbed."""
    return fault.applied or fault.kind in ("truncate", "answer", "wrong-signature")


def _altered(answer: dict[str, Any], fault: Fault) -> dict[str, Any]:
    if fault.kind == "answer":
        return {**answer, **fault.members}
    signature = bytearray(base64.b64decode(answer["Signature"]))
    signature[-1] ^= 1
    return {**answer, "Signature": base64.b64encode(signature).decode()}


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        raise AwsError("SerializationException") from None
