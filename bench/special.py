"""The scenes beside plain throughput: KMS latency, many keysets, floods, start and idleness."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import bare, children, noise, wrk
from bench.model import Limit, Measure, Metrics, Opened, Options, Refused, Row, Scene
from bench.ours import Keyset, Service, worker_megabytes
from bench.places import ROOT
from bench.scenes import CONNECTIONS, MAIN, Stage, stage
from bench.wrk import Request
from tests.support.service import free_port

_KMS_CALLERS, _KMS_LATENCY_MS, _PROCESSES = 64, 10, 2
_FLOOD_RATE = 5000  # requests a second, half of them for unknown paths
_FLOOD_PAUSE_MS, _FLOOD_CONNECTIONS = 170, 950  # so many that slow answers change the rate little
_IDLE_SECONDS = 10  # at least
_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST", "AWS_SECRET_ACCESS_KEY": "secret"}


@contextmanager
def kms(_: Options) -> Iterator[Opened]:
    with stage() as on:
        fake, state, log = free_port(), on.directory / "kms.json", on.directory / "fake-kms.log"
        words = [
            sys.executable,
            "-m",
            "tests.support.kms",
            "--port",
            str(fake),
            "--state",
            str(state),
        ]
        child = on.stack.enter_context(children.running(words, log, cwd=ROOT))
        children.wait_for(child, fake, "/", log, below=600)
        stub = on.try_open(
            ("boto3", "kmsjwks"),
            lambda: bare.kms_stub(fake, state, _KMS_LATENCY_MS, on.directory),
        )
        if stub is not None:
            _kms_contenders(on, f"http://127.0.0.1:{stub}", state)
        yield on.opened()


def _kms_contenders(on: Stage, endpoint: str, state: Path) -> None:
    service = Service(on.directory / "kmsjwks", _kms_tables(endpoint), _CREDENTIALS)
    service.make_keysets([Keyset("es", "ES256", "kms")])
    on.stack.enter_context(service.serving("es", workers=_PROCESSES))
    on.wrk("kmsjwks", service.sign("es"), connections=_KMS_CALLERS)
    key = next(one for one in json.loads(state.read_text())["keys"] if one["state"] == "Enabled")
    arn = f"arn:aws:kms:{key['region']}:{key['account']}:key/{key['id']}"

    def alone(seconds: int) -> Metrics:
        return bare.boto3_alone(endpoint, arn, _PROCESSES, _KMS_CALLERS // _PROCESSES, seconds)

    on.measures["boto3"] = alone


def _kms_tables(endpoint: str) -> str:
    """The limit below AWS's default quota is raised: the endpoint has none."""
    return f"""[audit]
directory = "audit"
[backends.kms]
type = "awskms"
region = "us-east-1"
endpoint = "{endpoint}"
sts_endpoint = "{endpoint}"
requests_per_second = 1000000
"""


@contextmanager
def keysets(options: Options) -> Iterator[Opened]:
    with stage() as on:
        one = on.service("one", keysets=MAIN[:1])
        others = tuple(
            Keyset(f"k{number}", "ES256", issuer=f"/k{number}")
            for number in range(1, options.keysets)
        )
        many = on.service("many", keysets=MAIN[:1] + others)
        on.stack.enter_context(one.serving("es"))
        server = on.stack.enter_context(many.serving("es"))
        on.wrk("one", one.sign("es"))
        on.wrk("many", many.sign("es"))
        on.measures["memory"] = lambda _: {"mb": worker_megabytes(server)}
        if options.soak:
            on.measures["soak"] = _soak(many, server, options.soak)
        else:
            on.absent["soak"] = "not asked for (--soak 600)"
        yield on.opened()


def _soak(service: Service, server: subprocess.Popen[bytes], seconds: int) -> Measure:
    """Once, whatever the rounds."""
    grown: list[float] = []
    file = service.directory / "soak.lua"

    def measure(_: int) -> Metrics:
        if not grown:
            wrk.load(service.sign("es"), file, CONNECTIONS, min(30, seconds))
            before = worker_megabytes(server)
            wrk.load(service.sign("es"), file, CONNECTIONS, seconds)
            grown.append(100 * (worker_megabytes(server) / before - 1))
        return {"percent": grown[0]}

    return measure


@contextmanager
def start(_: Options) -> Iterator[Opened]:
    with stage() as on:
        service = on.service("kmsjwks", keysets=MAIN[:1])
        on.measures["start"] = lambda _: {"seconds": service.seconds_to_first_token("es")}
        yield on.opened()


@contextmanager
def idle(_: Options) -> Iterator[Opened]:
    with stage() as on:
        service = on.service("kmsjwks", keysets=MAIN[:1])
        server = on.stack.enter_context(service.serving("es"))

        def measure(seconds: int) -> Metrics:
            began, used = time.monotonic(), noise.cpu_seconds(server.pid)
            time.sleep(max(seconds, _IDLE_SECONDS))
            spent = noise.cpu_seconds(server.pid) - used
            return {"percent": 100 * spent / (time.monotonic() - began)}

        on.measures["idle"] = measure
        yield on.opened()


@contextmanager
def flood(_: Options) -> Iterator[Opened]:
    with stage() as on:
        service = on.service("kmsjwks", keysets=MAIN[:1])
        on.stack.enter_context(service.serving("es"))
        on.wrk("quiet", service.sign("es"))
        on.measures["flooded"] = _flooded(on, service)
        yield on.opened()


def _flooded(on: Stage, service: Service) -> Measure:
    storm = Request(
        service.port, service.jwks().path, expect=(200, 404), pause=_FLOOD_PAUSE_MS,
        unknown="/nobody-%d/.well-known/jwks.json",
    )  # fmt: skip
    file, signing = on.directory / "storm.lua", on.directory / "flooded.lua"

    def measure(seconds: int) -> Metrics:
        child = wrk.start(storm, file, _FLOOD_CONNECTIONS, seconds + 1)
        try:
            signed = wrk.load(service.sign("es"), signing, CONNECTIONS, seconds)
            rate = wrk.finish(child)["rate"]
        finally:
            child.kill()
            child.wait()
        if not math.isclose(rate, _FLOOD_RATE, rel_tol=0.1):
            raise Refused(f"the flood was {rate:.0f} requests a second, not {_FLOOD_RATE}")
        return {**signed, "flood": rate}

    return measure


SPECIAL_SCENES = (
    Scene("kms", (
        Row("KMS at 10 ms, 64 callers, against boto3 alone", "rate", "/s", "kmsjwks", "boto3",
            Limit("least", 0.9, 0.95)),
    ), kms),
    Scene("keysets", (
        Row("Many keysets against one, sign p50", "p50", " ms", "many", "one",
            Limit("most", 1.10, 1.05)),
        Row("Resident memory of a worker with many keysets", "mb", " MB", "memory", None,
            Limit("most", 130)),
        Row("Memory growth over the soak", "percent", " %", "soak", None, Limit("most", 5)),
    ), keysets),
    Scene("start", (
        Row("Start to first token", "seconds", " s", "start", None, Limit("most", 2)),
    ), start),
    Scene("idle", (
        Row("Idle CPU of all processes", "percent", " %", "idle", None, Limit("most", 0.5)),
    ), idle),
    Scene("flood", (
        Row("Sign p99 under a JWKS flood of 5,000/s, against none", "p99", " ms", "flooded",
            "quiet", Limit("most", 2.0)),
    ), flood),
)  # fmt: skip
