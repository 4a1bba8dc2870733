"""A bare signing service: FastAPI and python-pkcs11. No auth, audit, token rules or verification.

Environment: BENCH_MODULE, BENCH_LABEL, BENCH_PIN_FILE; the key is the ES256 key of that token with
the label of BENCH_KEY. One session a process, which suits one event loop.
"""

import base64
import hashlib
import json
import os
import time
import uuid
from pathlib import Path

import pkcs11
from fastapi import FastAPI, Request

HEADER = base64.urlsafe_b64encode(b'{"alg":"ES256","typ":"JWT","kid":"bench"}').rstrip(b"=") + b"."

app = FastAPI()


def open_key():
    token = pkcs11.lib(os.environ["BENCH_MODULE"]).get_token(token_label=os.environ["BENCH_LABEL"])
    session = token.open(user_pin=Path(os.environ["BENCH_PIN_FILE"]).read_text().strip())
    return session.get_key(
        object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=os.environ["BENCH_KEY"]
    )


key = open_key()


@app.post("/sign")
async def sign(request: Request):
    claims = json.loads(await request.body())["claims"]
    now = int(time.time())
    claims |= {"iss": "bench", "iat": now, "nbf": now, "exp": now + 300, "jti": str(uuid.uuid4())}
    body = base64.urlsafe_b64encode(json.dumps(claims, separators=(",", ":")).encode())
    signed = HEADER + body.rstrip(b"=")
    digest = hashlib.sha256(signed).digest()
    signature = base64.urlsafe_b64encode(key.sign(digest, mechanism=pkcs11.Mechanism.ECDSA))
    return {"token": (signed + b"." + signature.rstrip(b"=")).decode()}
