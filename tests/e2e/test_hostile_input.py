"""What must give a 4xx in milliseconds, with nothing signed and nothing lost."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator, Mapping
from urllib.parse import quote

import pytest

from tests.e2e.conftest import Keyset
from tests.support.http import JSON, Answer, raw
from tests.support.service import Server

SIGN = "/v1/keysets/es256/sign/jwt"
LIMIT = 0.1  # seconds; the best of three, because other programs use the machine too
SLOWEST = 1.0  # seconds


@pytest.fixture(autouse=True)
def _nothing_signed_and_all_well(server: Server, keysets: dict[str, Keyset]) -> Iterator[None]:
    before = server.installation.audit_lines()
    yield
    assert server.installation.audit_lines() == before
    assert server.sign("es256").status == 200


def refused(answer: Answer, *statuses: int) -> None:
    assert answer.status in statuses, answer.body
    assert answer.header("Content-Type") == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail", "request_id"} <= problem.keys()
    assert problem["status"] == answer.status
    assert problem["request_id"] == answer.header("X-Request-Id") != ""
    assert problem["title"]
    assert problem["detail"]
    assert answer.header("Cache-Control") == "no-store"
    assert answer.seconds < SLOWEST


def attempt(server: Server, body: bytes, headers: Mapping[str, str] = JSON) -> Answer:
    """On a connection that must be good for another request afterwards."""
    http = server.http("all")
    assert http.get("/healthz").status == 200
    answer = http.request("POST", SIGN, body, headers)
    assert http.get("/healthz").status == 200
    return answer


MALFORMED = {
    "empty": b"",
    "blank": b" \n ",
    "cut off": b'{"claims": {"sub": "a"',
    "trailing": b'{"claims": {}} {}',
    "trailing comma": b'{"claims": {"a": 1,}}',
    "comment": b'{"claims": {} /* */}',
    "single quotes": b"{'claims': {}}",
    "text": b"claims",
    "form": b"claims=%7B%7D",
    "array": b"[]",
    "array of requests": b'[{"claims": {}}]',
    "string": b'"claims"',
    "number": b"1",
    "null": b"null",
    "true": b"true",
    "duplicate at the top": b'{"claims": {"sub": "a"}, "claims": {"sub": "b"}}',
    "duplicate claim": b'{"claims": {"sub": "a", "sub": "b"}}',
    "duplicate deep": b'{"claims": {"a": [{"b": {"c": 1, "c": 1}}]}}',
    "duplicate escaped": b'{"claims": {"sub": "a", "s\\u0075b": "b"}}',
    "duplicate member escaped": b'{"claims": {}, "clai\\u006ds": {}}',
    "NaN": b'{"claims": {"a": NaN}}',
    "Infinity": b'{"claims": {"a": Infinity}}',
    "-Infinity": b'{"claims": {"a": [-Infinity]}}',
    "1e999": b'{"claims": {"a": 1e999}}',
    "-1e999": b'{"claims": {"a": {"b": -1e999}}}',
    "too exact": b'{"claims": {"a": 0.12345678901234567890123}}',
    "huge integer": b'{"claims": {"a": ' + b"9" * 10_000 + b"}}",
    "lone surrogate": b'{"claims": {"a": "\\ud800"}}',
    "lone low surrogate": b'{"claims": {"a": ["\\udc00 "]}}',
    "surrogates swapped": b'{"claims": {"a": "\\udc00\\ud800"}}',
    "lone surrogate in a name": b'{"claims": {"\\ud800": 1}}',
    "lone surrogate as UTF-8": b'{"claims": {"a": "\xed\xa0\x80"}}',
    "depth 10,000 of arrays": b'{"claims": {"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}}",
    "depth 10,000 of objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "depth 10,000 unclosed": b"[" * 10_000,
    "depth 33": b'{"claims": {"a": ' + b"[" * 31 + b"]" * 31 + b"}}",
    "invalid UTF-8": b'{"claims": {"a": "\xff"}}',
    "overlong UTF-8": b'{"claims": {"a": "\xc0\xaf"}}',
    "UTF-16": '{"claims": {}}'.encode("utf-16"),
    "UTF-32": '{"claims": {}}'.encode("utf-32-le"),
    "byte order mark": b'\xef\xbb\xbf{"claims": {}}',
    "raw control character": b'{"claims": {"a": "\x00"}}',
    "raw newline": b'{"claims": {"a": "\n"}}',
    "NUL after": b'{"claims": {}}\x00',
}


@pytest.mark.parametrize("name", MALFORMED)
def test_not_json(server: Server, name: str) -> None:
    refused(attempt(server, MALFORMED[name]), 400)


def test_answers_come_at_once(server: Server) -> None:
    http = server.http("all")
    for name, body in MALFORMED.items():
        best = min(http.request("POST", SIGN, body, JSON).seconds for _ in range(3))
        assert best < LIMIT, name
    for _ in range(3):
        length = f"Content-Length: {len(TEN_MEGABYTES)}"
        best = raw(server.port, head(server, length) + TEN_MEGABYTES).seconds
        if best < LIMIT:
            return
    raise AssertionError(f"10 MB took {best} s")


MEMBERS: dict[str, object] = {
    "none": {},
    "unknown": {"claims": {}, "key": "es384"},
    "alg at the top": {"claims": {}, "alg": "none"},
    "kid at the top": {"claims": {}, "kid": "x"},
    "claims null": {"claims": None},
    "claims array": {"claims": []},
    "claims string": {"claims": "{}"},
    "claims number": {"claims": 1},
    "headers null": {"claims": {}, "headers": None},
    "headers array": {"claims": {}, "headers": []},
    "ttl null": {"claims": {}, "ttl": None},
    "ttl float": {"claims": {}, "ttl": 60.0},
    "ttl text": {"claims": {}, "ttl": "60"},
    "ttl true": {"claims": {}, "ttl": True},
    "ttl array": {"claims": {}, "ttl": [60]},
}


@pytest.mark.parametrize("name", MEMBERS)
def test_members(server: Server, name: str) -> None:
    refused(attempt(server, json.dumps(MEMBERS[name]).encode()), 400)


NOW = int(time.time())
REJECTED: dict[str, object] = {
    "iss": {"claims": {"iss": "https://evil.example"}},
    "iss, even the right one": {"claims": {"iss": "http://127.0.0.1"}},
    "iat": {"claims": {"iat": NOW}},
    "exp float": {"claims": {"exp": NOW + 60.0}},
    "exp float with exponent": {"claims": {"exp": 1e10}},
    "exp text": {"claims": {"exp": str(NOW + 60)}},
    "exp true": {"claims": {"exp": True}},
    "exp null": {"claims": {"exp": None}},
    "exp array": {"claims": {"exp": [NOW + 60]}},
    "exp past": {"claims": {"exp": NOW - 1}},
    "exp zero": {"claims": {"exp": 0}},
    "exp negative": {"claims": {"exp": -(2**70)}},
    "exp above the maximum": {"claims": {"exp": NOW + 7200}},
    "exp in milliseconds": {"claims": {"exp": (NOW + 60) * 1000}},
    "exp huge": {"claims": {"exp": 2**200}},
    "nbf text": {"claims": {"nbf": "now"}},
    "nbf long past": {"claims": {"nbf": 0}},
    "nbf after exp": {"claims": {"nbf": NOW + 3000}, "ttl": 60},
    "ttl zero": {"claims": {}, "ttl": 0},
    "ttl negative": {"claims": {}, "ttl": -60},
    "ttl above the maximum": {"claims": {}, "ttl": 3601},
    "ttl huge": {"claims": {}, "ttl": 10**30},
    "ttl and exp": {"claims": {"exp": NOW + 60}, "ttl": 60},
    "sub number": {"claims": {"sub": 1}},
    "jti number": {"claims": {"jti": 1}},
    "jti empty": {"claims": {"jti": ""}},
    "aud number": {"claims": {"aud": 1}},
    "aud empty": {"claims": {"aud": []}},
    "aud mixed": {"claims": {"aud": ["a", 1]}},
    **{
        f"header {name}": {"claims": {}, "headers": {name: value}}
        for name, value in {
            "alg": "none", "kid": "other", "jku": "https://evil.example", "jwk": {"kty": "oct"},
            "x5c": ["MII"], "x5u": "https://evil.example", "x5t": "x", "x5t#S256": "x",
            "crit": ["exp"], "b64": False, "zip": "DEF", "enc": "A256GCM", "iss": "me",
            "typ": "at+jwt", "cty": 1, "\u0000": "x", "x" * 5000: "x",
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", REJECTED)
def test_claims_and_headers(server: Server, name: str) -> None:
    answer = attempt(server, json.dumps(REJECTED[name]).encode())
    refused(answer, 422)
    assert answer.json()["member"]


GOOD = b'{"claims": {"sub": "a"}}'
TYPES: dict[str, tuple[Mapping[str, str], bytes]] = {
    "none": ({}, GOOD),
    "empty": ({"Content-Type": ""}, GOOD),
    "text": ({"Content-Type": "text/plain"}, GOOD),
    "form": ({"Content-Type": "application/x-www-form-urlencoded"}, GOOD),
    "almost": ({"Content-Type": "application/jsonp"}, GOOD),
    "suffix": ({"Content-Type": "application/jwt+json"}, GOOD),
    "two": ({"Content-Type": "application/json, text/plain"}, GOOD),
    "latin-1": ({"Content-Type": "application/json; charset=iso-8859-1"}, GOOD),
    "multipart": ({"Content-Type": "multipart/form-data; boundary=x"}, GOOD),
    "gzip": ({**JSON, "Content-Encoding": "gzip"}, gzip.compress(GOOD)),
    "gzip that is not": ({**JSON, "Content-Encoding": "gzip"}, GOOD),
    "deflate and identity": ({**JSON, "Content-Encoding": "deflate, identity"}, GOOD),
}


@pytest.mark.parametrize("name", TYPES)
def test_media_types(server: Server, name: str) -> None:
    headers, body = TYPES[name]
    refused(attempt(server, body, headers), 415)


def head(server: Server, *lines: str, path: str = SIGN) -> bytes:
    token = server.installation.tokens["all"]
    fixed = (f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {token}",
             "Content-Type: application/json")  # fmt: skip
    return "\r\n".join((*fixed, *lines, "", "")).encode("latin-1")


TEN_MEGABYTES = b'{"claims": {"a": "' + b"x" * 10_000_000 + b'"}}'


def test_ten_megabytes(server: Server) -> None:
    length = f"Content-Length: {len(TEN_MEGABYTES)}"
    refused(raw(server.port, head(server, length) + TEN_MEGABYTES), 413)
    refused(raw(server.port, head(server, length)), 413)  # answered before it is sent


def test_ten_megabytes_in_chunks(server: Server) -> None:
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part)
        for part in (TEN_MEGABYTES[i : i + 50_000] for i in range(0, len(TEN_MEGABYTES), 50_000))
    )
    refused(
        raw(server.port, head(server, "Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n"), 413
    )


def test_chunks_are_read_like_any_body(server: Server) -> None:
    answer = raw(
        server.port, head(server, "Transfer-Encoding: chunked") + b'3\r\n{"c\r\n1\r\n}\r\n0\r\n\r\n'
    )
    refused(answer, 400)


NAMES = {
    "slash": "a%2Fb",
    "NUL": "%00",
    "NUL within": "es256%00",
    "dots": "..",
    "dots escaped": "%2e%2e",
    "climbing": "..%2f..%2fetc%2fpasswd",
    "long": "a" * 3000,
    "unicode": quote("schlüssel"),
    "full width": quote("ｅｓ２５６"),  # noqa: RUF001
    "not UTF-8": "%ff%fe",
    "upper case": "ES256",
    "blank": "%20es256",
    "trailing blank": "es256%20",
    "glob": "*",
    "line break": "es256%0d%0aX-Evil:%201",
    "quote": "es256'--",
    "half escape": "es256%",
    "bad escape": "es%zz256",
    "parameters": "es256;a=b",
}


@pytest.mark.parametrize("name", NAMES)
def test_keyset_names(server: Server, name: str) -> None:
    path = f"/v1/keysets/{NAMES[name]}"
    body = b"Content-Length: 24\r\n\r\n" + GOOD
    sign = head(server, path=f"{path}/sign/jwt")[:-2] + body
    refused(raw(server.port, sign), 404)
    refused(server.http("all").get(path), 404)
    sent = raw(server.port, sign.replace(b"Authorization", b"X-Nothing"))
    refused(sent, 401, 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *((method, SIGN) for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "TRACE", "BREW")),
        *((method, "/v1/keysets") for method in ("POST", "PUT", "DELETE")),
        *((method, "/v1/keysets/es256") for method in ("POST", "DELETE")),
        *((method, "/.well-known/jwks.json") for method in ("POST", "PUT", "DELETE")),
        *((method, "/healthz") for method in ("POST", "DELETE")),
        ("GET", "/v1/keysets/es256/verify"),
    ],
)
def test_methods(server: Server, method: str, path: str) -> None:
    answer = server.http("all").request(method, path)
    assert answer.status == 405
    assert answer.header("Allow")
    assert answer.header("Content-Type") == "application/problem+json"
    if method != "HEAD":
        refused(answer, 405)


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v1/keysets/", "/admin", "/sign", "/static/x", "/v1/keysets/es256/",
     f"{SIGN}/", "/v2/keysets", "/.env", "/v1/keysets//sign/jwt"],
)  # fmt: skip
def test_paths(server: Server, path: str) -> None:
    refused(server.http("all").get(path), 404)
    refused(server.http("all").post(path, {"claims": {}}), 404)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X-Many: 1\r\n" * 5000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"NOT HTTP\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ],
    ids=["big header", "many headers", "long line", "garbage", "TLS", "header name",
         "negative length", "two lengths"],
)  # fmt: skip
def test_what_is_not_http(server: Server, request_bytes: bytes) -> None:
    """The server's parser refuses it before there is a request that could have a problem body."""
    answer = raw(server.port, request_bytes)
    assert 400 <= answer.status < 500
    assert answer.seconds < SLOWEST


def test_smuggling(server: Server) -> None:
    """Both lengths (RFC 9112 section 6.1): refused, or one request and not two."""
    inner = head(server, "Content-Length: 24") + GOOD
    data = head(server, f"Content-Length: {5 + len(inner)}", "Transfer-Encoding: chunked")
    answer = raw(server.port, data + b"0\r\n\r\n" + inner)
    refused(answer, 400)


@pytest.mark.parametrize("sent", ["a" * 65, "a b", "é".encode().decode("latin-1"), "<x>", ""])
def test_request_ids_that_would_spoil_a_log(server: Server, sent: str) -> None:
    answer = server.http().get("/nothing", {"X-Request-Id": sent})
    refused(answer, 404)
    assert answer.header("X-Request-Id") != sent


def test_a_good_request_id_comes_back(server: Server) -> None:
    answer = server.http().get("/nothing", {"X-Request-Id": "trace-1.2:3_4"})
    refused(answer, 404)
    assert answer.json()["request_id"] == "trace-1.2:3_4"
