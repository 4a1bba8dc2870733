"""The scenes without a bound: what each safety costs, and how costs grow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bench.model import Opened, Options, Row, Scene
from bench.scenes import MAIN, stage

_SAFETIES = {
    "always": "",
    "sampled": '[signing]\nverification = "sampled"\n',
    "off": '[signing]\nverification = "off"\n',
    "disk": '[audit]\ndurability = "disk"\n',
}
_CONNECTIONS = (1, 2, 8, 32, 128)
_CLAIM_BYTES = (100, 1000, 8000, 32000)
_KEYSETS = MAIN[:1]


@contextmanager
def safeties(_: Options) -> Iterator[Opened]:
    with stage() as on:
        for name, tables in _SAFETIES.items():
            service = on.service(name, tables, _KEYSETS)
            on.stack.enter_context(service.serving("es"))
            on.wrk(name, service.sign("es"))
        yield on.opened()


@contextmanager
def connections(_: Options) -> Iterator[Opened]:
    with stage() as on:
        service = on.service("kmsjwks", keysets=_KEYSETS)
        on.stack.enter_context(service.serving("es"))
        for count in _CONNECTIONS:
            on.wrk(f"{count}", service.sign("es"), connections=count)
        yield on.opened()


@contextmanager
def claims(_: Options) -> Iterator[Opened]:
    with stage() as on:
        service = on.service("kmsjwks", keysets=_KEYSETS)
        on.stack.enter_context(service.serving("es"))
        on.wrk("usual", service.sign("es"))
        for size in _CLAIM_BYTES:
            on.wrk(f"{size}", service.sign("es", {"data": "x" * size}))
        yield on.opened()


COST_SCENES = (
    Scene("safeties", (
        Row("ES256, verification sampled against always", "rate", "/s", "sampled", "always", None),
        Row("ES256, verification off against always", "rate", "/s", "off", "always", None),
        Row("ES256, audit disk against os, 8 connections", "rate", "/s", "disk", "always", None),
    ), safeties),
    Scene("connections", tuple(
        row for count in _CONNECTIONS for row in (
            Row(f"ES256, {count} connections against 8", "rate", "/s", f"{count}", "8", None),
            Row(f"ES256, {count} connections, p99", "p99", " ms", f"{count}", "8", None),
        )
    ), connections),
    Scene("claims", tuple(
        Row(f"ES256, {size:,} bytes in a claim against 80", "rate", "/s", f"{size}", "usual", None)
        for size in _CLAIM_BYTES
    ), claims),
)  # fmt: skip
