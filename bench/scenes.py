"""The scenes on SoftHSM: what is started together, and which rows of the table it gives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench import bare, wrk
from bench.model import Absent, Limit, Measure, Metrics, Opened, Options, Refused, Row, Scene
from bench.openbao import openbao
from bench.ours import Keyset, Service, softhsm_tables
from bench.wrk import Request
from tests.support.softhsm import provision

_T = TypeVar("_T")
CONNECTIONS = 8
BATCH = 100
MAIN = (Keyset("es", "ES256"), Keyset("rs", "RS256"), Keyset("ed", "EdDSA"))
SAMPLED = '[signing]\nverification = "sampled"\n'


class Stage:
    """What a scene has opened; ends with the stack. A missing peer is noted, not an error."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self.measures: dict[str, Measure] = {}
        self.absent: dict[str, str] = {}

    def opened(self) -> Opened:
        return Opened(self.measures, self.absent)

    def try_open(
        self, names: tuple[str, ...], opening: Callable[[], AbstractContextManager[_T]]
    ) -> _T | None:
        """None, with the reason noted for ``names``, where a peer cannot be had or fails."""
        try:
            return self.stack.enter_context(opening())
        except (Absent, Refused) as reason:
            self.absent |= {name: str(reason) for name in names}
            return None

    def wrk(self, name: str, request: Request, connections: int = CONNECTIONS) -> None:
        file = self.directory / f"{name}.lua"

        def measure(seconds: int) -> Metrics:
            return wrk.load(request, file, connections, seconds)

        self.measures[name] = measure

    def raw(self, raw: bare.Raw | None, name: str, algorithm: str, why: str = "") -> None:
        if raw is None:
            self.absent[name] = why
            return

        def measure(seconds: int) -> Metrics:
            return raw.measure(algorithm, 2, seconds)

        self.measures[name] = measure

    def service(self, name: str, tables: str = "", keysets: tuple[Keyset, ...] = MAIN) -> Service:
        """On a token of its own, with its keysets, not serving yet."""
        token = provision(self.directory / f"{name}-token")
        service = Service(self.directory / name, merged(softhsm_tables(token), tables))
        service.make_keysets(keysets)
        return service

    def compiled(self, names: tuple[str, ...]) -> bare.Raw | None:
        try:
            return bare.compile_raw(provision(self.directory / "raw-token"))
        except (Absent, Refused) as reason:
            self.absent |= {name: str(reason) for name in names}
            return None


def merged(tables: str, more: str) -> str:
    """Two texts of TOML where the second may add members to [audit] of the first."""
    head = "[audit]\n"
    if more.startswith(head):
        return tables.replace(head, more.rstrip("\n") + "\n", 1)
    return f"{tables}\n{more}"


@contextmanager
def stage() -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(stack)


@contextmanager
def es256(_: Options) -> Iterator[Opened]:
    with stage() as on:
        ours = on.service("kmsjwks")
        on.stack.enter_context(ours.serving("es"))
        on.wrk("kmsjwks", ours.sign("es"))
        _sampled(on)
        bao = on.try_open(("openbao",), lambda: openbao(on.directory / "openbao"))
        if bao is not None:
            on.wrk("openbao", bao.sign())
        raw = on.compiled(("fastapi", "node"))
        if raw is not None:
            for name, opening in (("fastapi", bare.fastapi), ("node", bare.node)):
                request = on.try_open((name,), _bare(opening, raw, on.directory))
                if request is not None:
                    on.wrk(name, request)
        yield on.opened()


def _bare(
    opening: Callable[[bare.Raw, Path], AbstractContextManager[Request]], raw: bare.Raw, where: Path
) -> Callable[[], AbstractContextManager[Request]]:
    return lambda: opening(raw, where)


def _sampled(on: Stage) -> None:
    service = on.service("sampled", SAMPLED)
    on.stack.enter_context(service.serving("es"))
    on.wrk("sampled", service.sign("es"))


@contextmanager
def against_raw(keyset: str, algorithm: str) -> Iterator[Opened]:
    with stage() as on:
        ours = on.service("kmsjwks")
        on.stack.enter_context(ours.serving(keyset))
        on.wrk("kmsjwks", ours.sign(keyset))
        raw = on.compiled(("raw", "callable"))
        on.raw(raw, "raw", algorithm, on.absent.get("raw", ""))
        if raw is not None:
            opening = partial(bare.callable_app, raw, algorithm, on.directory)
            request = on.try_open(("callable",), opening)
            if request is not None:
                on.wrk("callable", request)
        yield on.opened()


def rs256(_: Options) -> AbstractContextManager[Opened]:
    return against_raw("rs", "RS256")


def ed25519(_: Options) -> AbstractContextManager[Opened]:
    return against_raw("ed", "EdDSA")


@contextmanager
def batch(_: Options) -> Iterator[Opened]:
    with stage() as on:
        ours = on.service("kmsjwks")
        on.stack.enter_context(ours.serving("es"))
        request = ours.sign_batch("es", BATCH)
        ours.check(request)
        on.wrk("kmsjwks", request)
        on.raw(on.compiled(("raw",)), "raw", "ES256", on.absent.get("raw", ""))
        yield on.opened()


@contextmanager
def jwks(_: Options) -> Iterator[Opened]:
    with stage() as on:
        ours = on.service("kmsjwks", keysets=MAIN[:1])
        on.stack.enter_context(ours.serving("es"))
        on.wrk("kmsjwks", ours.jwks())
        on.wrk("not-modified", ours.jwks_not_modified())
        bao = on.try_open(("openbao",), lambda: openbao(on.directory / "openbao"))
        if bao is not None:
            on.wrk("openbao", bao.keys())
        yield on.opened()


@contextmanager
def audit_disk(_: Options) -> Iterator[Opened]:
    with stage() as on:
        for name, tables in (("os", ""), ("disk", '[audit]\ndurability = "disk"\n')):
            service = on.service(name, tables, MAIN[:1])
            on.stack.enter_context(service.serving("es"))
            on.wrk(name, service.sign("es"), connections=32)
        yield on.opened()


@contextmanager
def workers(_: Options) -> Iterator[Opened]:
    """One after the other on the same installation: only one may have its port."""
    with stage() as on:
        service = on.service("kmsjwks", keysets=MAIN[1:2])
        file = on.directory / "request.lua"

        def measured(count: int) -> Measure:
            def measure(seconds: int) -> Metrics:
                with service.serving("rs", workers=count):
                    wrk.load(service.sign("rs"), file, CONNECTIONS, 1)
                    return wrk.load(service.sign("rs"), file, CONNECTIONS, seconds)

            return measure

        on.measures |= {"one": measured(1), "two": measured(2)}
        yield on.opened()


SOFTHSM_SCENES = (
    Scene("es256", (
        Row("ES256 single, against OpenBao with file audit", "rate", "/s", "kmsjwks", "openbao",
            Limit("least", 1.2, 1.5)),
        Row("ES256 single, p99 against OpenBao", "p99", " ms", "kmsjwks", "openbao",
            Limit("most", 0.5)),
        Row("ES256 single, verification sampled, against OpenBao", "rate", "/s", "sampled",
            "openbao", Limit("least", 1.8, 2.0)),
        Row("ES256 single, against bare FastAPI", "rate", "/s", "kmsjwks", "fastapi", None),
        Row("ES256 single, against bare Node", "rate", "/s", "kmsjwks", "node", None),
    ), es256),
    Scene("rs256", (
        Row("RS256-2048 single, against raw C in two processes", "rate", "/s", "kmsjwks", "raw",
            Limit("least", 0.80, 0.85)),
        Row("RS256-2048, a callable that only signs, against raw C", "rate", "/s", "callable",
            "raw", None),
    ), rs256),
    Scene("ed25519", (
        Row("Ed25519 single, against raw C in two processes", "rate", "/s", "kmsjwks", "raw",
            Limit("least", 0.42, 0.50)),
        Row("Ed25519, a callable that only signs, against raw C", "rate", "/s", "callable",
            "raw", None),
    ), ed25519),
    Scene("batch", (
        Row("Batch of 100, ES256, tokens against raw C in two processes", "rate", "/s", "kmsjwks",
            "raw", Limit("least", 0.35, 0.40), factor=BATCH),
    ), batch),
    Scene("jwks", (
        Row("JWKS GET, against OpenBao's identity keys", "rate", "/s", "kmsjwks", "openbao",
            Limit("least", 2.0, 4.0)),
        Row("JWKS 304, against the GET", "rate", "/s", "not-modified", "kmsjwks",
            Limit("least", 1.0)),
    ), jwks),
    Scene("audit", (
        Row("Audit disk against os, 32 connections", "rate", "/s", "disk", "os",
            Limit("least", 0.5, 0.7)),
    ), audit_disk),
    Scene("workers", (
        Row("Second worker process, RS256", "rate", "/s", "two", "one", Limit("least", 1.8, 1.9)),
    ), workers),
)  # fmt: skip
