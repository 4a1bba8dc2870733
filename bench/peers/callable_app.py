"""The least that a service in Python can do: a WSGI callable that parses claims, signs them and
answers. No framework, no auth, audit, token rules or verification. On granian, as we are, it is
what our own rows could reach if everything else were free.

Environment: BENCH_MODULE, BENCH_LABEL, BENCH_PIN_FILE; BENCH_KEY is ES256, RS256 or EdDSA, the
label of a key of that token. One session a thread.
"""

import hashlib
import json
import os
import threading
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path

import pkcs11

from kmsjwks.backends.pkcs11.library import Libraries

ALGORITHM = os.environ["BENCH_KEY"]
SHA256_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
MECHANISM = {
    "ES256": pkcs11.Mechanism.ECDSA,
    "RS256": pkcs11.Mechanism.RSA_PKCS,
    "EdDSA": pkcs11.Mechanism.EDDSA,
}[ALGORITHM]


def encoded(data):
    return urlsafe_b64encode(data).rstrip(b"=")


HEADER = encoded(json.dumps({"alg": ALGORITHM, "typ": "JWT", "kid": "bench"}).encode()) + b"."
# python-pkcs11's own initialisation turns SoftHSM's locks off.
library = Libraries().load(os.environ["BENCH_MODULE"], "auto", None, {})
token = library.find_token(os.environ["BENCH_LABEL"], None)
login = token.open(user_pin=Path(os.environ["BENCH_PIN_FILE"]).read_text().strip())
local = threading.local()


def key():
    if not hasattr(local, "key"):
        local.key = token.open().get_key(
            object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=ALGORITHM
        )
    return local.key


def to_sign(message):
    if ALGORITHM == "EdDSA":
        return message
    digest = hashlib.sha256(message).digest()
    return SHA256_DIGEST_INFO + digest if ALGORITHM == "RS256" else digest


def app(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    claims = json.loads(body)["claims"] if body else {}
    now = int(time.time())
    claims |= {"iss": "bench", "iat": now, "nbf": now, "exp": now + 300, "jti": str(uuid.uuid4())}
    message = HEADER + encoded(json.dumps(claims, separators=(",", ":")).encode())
    signature = key().sign(to_sign(message), mechanism=MECHANISM)
    answer = json.dumps({"token": (message + b"." + encoded(signature)).decode()}).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))]
    start_response("200 OK", headers)
    return [answer]
