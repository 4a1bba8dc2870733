"""AWS KMS with a round trip of so many milliseconds: Sign is answered here with real ES256
signatures, every other call is handed to the strict fake of the tests.

kms_stub.py PORT FAKE_PORT LATENCY_MS STATE_FILE     (the fake's state, which holds its keys)
"""

import asyncio
import base64
import http.client
import json
import sys
from pathlib import Path

import httptools
import uvloop
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

PORT, FAKE_PORT, LATENCY_MS = map(int, sys.argv[1:4])
STATE = Path(sys.argv[4])
SCHEME = ec.ECDSA(utils.Prehashed(hashes.SHA256()))
TYPE = b"Content-Type: application/x-amz-json-1.1\r\n"


KEYS = {}


def key_of(arn):
    """The state is read again for a key not seen before: the fake writes it at every change."""
    if arn not in KEYS:
        state = json.loads(STATE.read_text())
        for key in state["keys"]:
            name = f"arn:aws:kms:{key['region']}:{key['account']}:key/{key['id']}"
            der = base64.b64decode(state["material"].get(key["id"], ""))
            if der and key["spec"] == "ECC_NIST_P256":
                KEYS[name] = serialization.load_der_private_key(der, None)
    return KEYS[arn]


def sign(body):
    asked = json.loads(body)
    assert asked["MessageType"] == "DIGEST"
    signature = key_of(asked["KeyId"]).sign(base64.b64decode(asked["Message"]), SCHEME)
    return json.dumps(
        {
            "KeyId": asked["KeyId"],
            "Signature": base64.b64encode(signature).decode(),
            "SigningAlgorithm": asked["SigningAlgorithm"],
        }
    ).encode()


def hand_on(path, headers, body):
    connection = http.client.HTTPConnection("127.0.0.1", FAKE_PORT, timeout=30)
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.getheader("Content-Type") or "text/plain"


class Connection(asyncio.Protocol):
    """One request at a time, as HTTP/1.1 clients of boto3 send them."""

    def connection_made(self, transport):
        self.transport, self.parser = transport, httptools.HttpRequestParser(self)
        self.path, self.headers, self.body = "", {}, []

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_url(self, url):
        self.path = url.decode()

    def on_header(self, name, value):
        name = name.decode().lower()
        if name == "expect":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.headers[name] = value.decode()

    def on_body(self, data):
        self.body.append(data)

    def on_message_complete(self):
        path, headers, body = self.path, self.headers, b"".join(self.body)
        self.path, self.headers, self.body = "", {}, []
        loop = asyncio.get_running_loop()
        if headers.get("x-amz-target") == "TrentService.Sign":
            loop.call_later(LATENCY_MS / 1000, self.answer_sign, body)
        else:
            future = loop.run_in_executor(None, hand_on, path, headers, body)
            future.add_done_callback(lambda done: self.send(*done.result()))

    def answer_sign(self, body):
        if not self.transport.is_closing():
            self.send(200, sign(body), None)

    def send(self, status, body, content_type):
        kind = TYPE if content_type is None else f"Content-Type: {content_type}\r\n".encode()
        head = b"HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n" % (status, kind, len(body))
        self.transport.write(head + body)


async def serve():
    server = await asyncio.get_running_loop().create_server(
        Connection, "127.0.0.1", PORT, backlog=1024
    )
    await server.serve_forever()


uvloop.run(serve())
