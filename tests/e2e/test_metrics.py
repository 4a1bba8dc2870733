"""Metrics of a real service with two workers, on an address of their own."""

from __future__ import annotations

import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.service import Installation, Server, free_port
from tests.support.softhsm import provision

_PATIENCE = 15.0  # seconds


class Metered(Server):
    """``metrics`` is the port that they are on."""

    def __init__(self, installation: Installation, metrics: int) -> None:
        super().__init__(installation)
        self.metrics = metrics

    def scrape(self) -> dict[str, float]:
        """Every sample by its name and labels, as they are written."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=5) as got:
            text = got.read().decode()
        lines = re.findall(r"^(kmsjwks_\S+) (\S+)$", text, re.M)
        return {name: float(value) for name, value in lines}

    def until(self, wanted: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        deadline, found = time.monotonic() + _PATIENCE, dict[str, float]()
        while time.monotonic() < deadline:
            try:
                found = self.scrape()
            except OSError:
                found = {}
            if found and wanted(found):
                return found
            time.sleep(0.2)
        raise AssertionError(f"not seen in time: {found}\n{self.logged()}")

    def processes_named_in(self, pattern: str) -> set[int]:
        directory = self.installation.directory / "state" / f"metrics-{self.metrics}"
        return {int(file.stem.rpartition("_")[2]) for file in directory.glob(pattern)}


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metered]:
    directory = tmp_path_factory.mktemp("metrics")
    port = free_port()
    installation = Installation(directory / "service", provision(directory / "token").options())
    with installation.config.open("a") as config:
        config.write(
            f"\n[metrics]\nport = {port}\n[rotation]\ntick_interval = 1\ncheck_public_jwks = true\n"
        )
    installation.create_keyset("es", "ES256")
    # One whose public URL nobody answers at: its spare waits.
    installation.create_keyset("lost", "ES256", "--issuer", "http://127.0.0.1:9/lost")
    server = Metered(installation, port)
    server.start()
    yield server
    server.kill_all()


def test_what_is_shown(metered: Metered) -> None:
    found = metered.until(
        lambda seen: (
            seen.get('kmsjwks_activation_blocked{keyset="es"}') == 0.0
            and "kmsjwks_tick_last_success_timestamp_seconds" in seen
        )
    )
    assert found['kmsjwks_keys{keyset="es",state="active"}'] == 1
    assert found['kmsjwks_keys{keyset="es",state="pre-activation"}'] == 1
    assert found['kmsjwks_keys{keyset="es",state="compromised"}'] == 0
    assert found['kmsjwks_activation_blocked{keyset="lost"}'] == 1
    assert found['kmsjwks_backend_up{backend="token"}'] == 1
    assert 0 <= found["kmsjwks_snapshot_staleness_seconds"] < 10
    assert found["kmsjwks_worst_case_staleness_seconds"] == 900 + 2 * 1
    assert abs(time.time() - found["kmsjwks_tick_last_success_timestamp_seconds"]) < _PATIENCE
    assert found["kmsjwks_tick_failures"] == 0
    assert found["kmsjwks_publication_failing"] == 0


def test_tokens_and_refusals_are_counted_over_all_workers(metered: Metered) -> None:
    before = metered.scrape()
    statuses = [metered.sign("es").status for _ in range(20)]
    assert statuses == [200] * 20
    assert metered.sign("es", {"iss": "x"}).status == 422
    path = "/v1/keysets/es/sign/jwt"
    assert metered.http().post(path, {"claims": {}}).status == 401
    assert metered.http("team").post(path, {"claims": {}}).status == 403
    after = metered.scrape()

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert more('kmsjwks_tokens_signed_total{alg="ES256",keyset="es"}') == 20
    for code in ("claim-rejected", "unauthenticated", "forbidden"):
        assert more(f'kmsjwks_sign_refused_total{{code="{code}"}}') == 1


def test_a_killed_worker_keeps_its_counts_and_loses_its_state(metered: Metered) -> None:
    assert metered.sign("es").status == 200
    name = 'kmsjwks_tokens_signed_total{alg="ES256",keyset="es"}'
    counted = metered.scrape()[name]
    victim = min(metered.processes_named_in("gauge_livemax_*.db"))
    os.kill(victim, signal.SIGKILL)
    metered.until(lambda _: victim not in metered.processes_named_in("gauge_livemax_*.db"))
    assert metered.scrape()[name] == counted


def test_the_process_of_the_metrics_comes_back(metered: Metered) -> None:
    # A worker that was killed before is back.
    metered.until(
        lambda _: len(metered.processes_named_in("gauge_livemax_*.db")) == metered.workers
    )
    workers = metered.processes_named_in("gauge_livemax_*.db")
    (exporter,) = set(metered.worker_pids()) - workers - _helpers(metered)
    os.kill(exporter, signal.SIGKILL)
    metered.until(lambda _: exporter not in metered.worker_pids())
    assert metered.sign("es").status == 200


def _helpers(server: Server) -> set[int]:
    """Processes that are neither worker nor of the service, such as multiprocessing's tracker."""
    return {
        pid
        for pid in server.worker_pids()
        if b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }


def test_the_api_does_not_show_them_and_nothing_stays(metered: Metered) -> None:
    assert metered.http().get("/metrics").status == 404
    pids = [metered.process.pid, *metered.worker_pids()]
    assert metered.stop() == 0
    time.sleep(0.5)
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_a_taken_address_is_told(metered: Metered) -> None:
    with metered.installation.config.open() as config:
        taken = config.read().replace(f"port = {metered.metrics}", f"port = {metered.port}")
    other = metered.installation.directory / "other.toml"
    other.write_text(taken)
    metered.start()
    done = metered.installation.cli("--config", str(other), "serve", "--port", str(free_port()))
    assert done.returncode == 1
    assert "[metrics] host and port" in done.stderr
