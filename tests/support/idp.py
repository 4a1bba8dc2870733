"""An identity provider in this process: keys, tokens that are right, tokens that are forged."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

from joserfc import jws
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

NOW = 1_800_000_000
AUDIENCE = "https://kmsjwks.example"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(header: Mapping[str, Any], claims: Any, key: Any) -> str:
    """A signed JWS; ``header`` says the algorithm."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    registry = jws.JWSRegistry(algorithms=[header["alg"]], strict_check_header=False)
    registry.max_header_length = 64 * 1024
    return jws.serialize_compact(dict(header), payload, key, registry=registry)


def make_key(kind: Literal["RSA", "P-256", "Ed25519"], kid: str) -> Key:
    if kind == "RSA":
        return RSAKey.generate_key(2048, {"kid": kid})
    if kind == "Ed25519":
        return OKPKey.generate_key("Ed25519", {"kid": kid})
    return ECKey.generate_key("P-256", {"kid": kid})


class Idp:
    """``keys`` by kid; what is in it is what the JWKS has."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.keys: dict[str, Key] = {"ec": make_key("P-256", "ec"), "rsa": make_key("RSA", "rsa")}

    def claims(self, **more: Any) -> dict[str, Any]:
        """Of a token that is right; None removes a claim."""
        claims = {
            "iss": self.issuer,
            "sub": "system:serviceaccount:prod:api",
            "aud": AUDIENCE,
            "iat": NOW,
            "exp": NOW + 300,
            **more,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, header: Mapping[str, Any] | None = None, **more: Any) -> str:
        whole = {"alg": "ES256", "kid": "ec", **(header or {})}
        return compact(whole, self.claims(**more), self.keys["ec"])

    def jwks(self) -> list[Any]:
        return [
            {**key.as_dict(private=False), "kid": kid, "use": "sig"}
            for kid, key in self.keys.items()
        ]


class JsonServer:
    """Answers GET on a loopback port from ``answers``: a path's status, headers and body."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[str] = []
        self.sent_headers: list[Mapping[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.sent_headers.append(dict(self.headers.items()))
                status, headers, body = outer.answers.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def publish(self, idp: Idp) -> None:
        """Discovery and keys at the issuer's paths, which are below this server."""
        metadata = {"issuer": idp.issuer, "jwks_uri": f"{self.url}/keys"}
        self.answer("/.well-known/openid-configuration", metadata)
        self.answer("/keys", {"keys": idp.jwks()})

    def answer(self, path: str, value: Any, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.answers[path] = status, headers, body

    def wrap(self, context: Any) -> None:
        """Speak TLS from now on."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
