"""`keysets standby|failover|migrate` and `backends` over two fake backends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kmsjwks.cli.main import main
from kmsjwks.domain.errors import BackendDenied, BackendUnavailable
from tests.support.wiring import LastingBackend, install_backends, write_config

Run = Callable[..., Result]
GONE = BackendUnavailable("The token is away.")
CONFIG = """
[backends.other]
type = "fake"
[rotation]
development = true
skew = 0
"""
DEMO = ("demo", "--algorithm", "ES256", "--backend", "fake", "--propagation", "0s")


@pytest.fixture
def fakes() -> dict[str, LastingBackend]:
    return {"fake": LastingBackend(), "other": LastingBackend()}


@pytest.fixture
def run(fakes: dict[str, LastingBackend], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    install_backends(monkeypatch, fakes)
    config = write_config(tmp_path, CONFIG)

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(main, ["--config", str(config), "-o", "json", *words])

    return invoke


def told(result: Result, code: int = 0) -> Any:
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def refused(result: Result, code: int, said: str) -> None:
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def show(run: Run) -> dict[str, Any]:
    shown: dict[str, Any] = told(run("keysets", "show", "demo"))
    return shown


def where(shown: dict[str, Any]) -> set[tuple[str, str]]:
    return {(key["backend"], key["state"]) for key in shown["keys"]}


def test_created_with_a_standby_its_spare_is_there_at_once(run: Run) -> None:
    words = ("--standby", "other", "--failover-after", "2m", "--failback-after", "never")
    made = told(run("keysets", "create", *DEMO, *words))
    assert where(made) == {
        ("fake", "active"),
        ("fake", "pre-activation"),
        ("other", "pre-activation"),
    }
    assert (made["backend"], made["standby"], made["signs_in"]) == ("fake", "other", "fake")
    assert (made["failover_after"], made["failback_after"]) == ("2m", "on command")
    (why,) = [date["why"] for date in made["dates"] if date["what"] == "stands by"]
    assert "in other: takes over when fake fails and has been down for 2 m" in why
    (listed,) = told(run("keysets", "list"))
    assert (listed["standby"], listed["signs_in"]) == ("other", "fake")


def test_a_standby_that_is_down_is_made_up_for_later(
    run: Run, fakes: dict[str, LastingBackend]
) -> None:
    fakes["other"].break_with(GONE)
    result = run("keysets", "create", *DEMO, "--standby", "other")
    assert ("other", "pre-activation") not in where(told(result))
    assert "warning: demo: The token is away." in result.stderr
    fakes["other"].break_with(None)
    assert run("rotate", "--due").exit_code == 0
    assert ("other", "pre-activation") in where(show(run))


def test_a_standby_is_given_changed_and_taken_away(run: Run) -> None:
    told(run("keysets", "create", *DEMO))
    assert "standby of demo: other" in run("keysets", "standby", "demo", "other").stderr
    shown = show(run)
    assert (shown["standby"], shown["failover_after"]) == ("other", "1m")
    assert ("other", "pre-activation") in where(shown)
    done = run("keysets", "standby", "demo", "other", "--failover-after", "never", "--dry-run")
    assert done.stderr.count("would: ") == 1
    assert show(run)["failover_after"] == "1m"
    assert run("keysets", "standby", "demo", "none").exit_code == 0
    assert show(run)["standby"] is None
    refused(run("keysets", "standby", "demo", "fake"), 2, "primary")
    refused(run("keysets", "standby", "demo", "absent"), 2, "absent")
    delay = ("--failover-after", "1m")
    refused(run("keysets", "standby", "demo", "none", *delay), 2, "need a standby")
    refused(run("keysets", "standby", "demo", "other", "--failback-after", "soon"), 2, "duration")


def test_ensure_brings_the_standby_in_line(run: Run) -> None:
    told(run("keysets", "ensure", *DEMO))
    with_standby = told(run("keysets", "ensure", *DEMO, "--standby", "other"))
    assert ("other", "pre-activation") in where(with_standby)
    assert told(run("keysets", "ensure", *DEMO))["standby"] is None
    refused(run("keysets", "ensure", *DEMO, "--failover-after", "1m"), 2, "need a standby")


def test_failover(run: Run, fakes: dict[str, LastingBackend]) -> None:
    told(run("keysets", "create", *DEMO, "--standby", "other"))
    tried = run("keysets", "failover", "demo", "--dry-run")
    assert "would: Key" in tried.stderr
    assert show(run)["signs_in"] == "fake"
    fakes["other"].break_with(GONE)
    refused(run("keysets", "failover", "demo"), 3, "The token is away.")
    fakes["other"].break_with(None)
    assert run("keysets", "failover", "demo", "--to", "other").exit_code == 0
    shown = show(run)
    assert shown["signs_in"] == "other"
    assert ("other", "pre-activation") in where(shown)  # the next spare, at once
    (why,) = [date["why"] for date in shown["dates"] if date["what"] == "stands by"]
    assert "in fake: takes over when fake has been up again for 1 h" in why
    assert told(run("sign", "demo"))["kid"] in {
        key["kid"] for key in shown["keys"] if key["backend"] == "other"
    }
    refused(run("keysets", "standby", "demo", "none"), 1, "signs in its standby")
    assert run("keysets", "failover", "demo").exit_code == 0
    assert show(run)["signs_in"] == "fake"


def test_a_spare_that_verifiers_may_not_know(run: Run) -> None:
    words = ("demo", "--algorithm", "ES256", "--backend", "fake", "--standby", "other")
    told(run("keysets", "create", *words))
    refused(run("keysets", "failover", "demo"), 1, "--now")
    done = run("keysets", "failover", "demo", "--now")
    assert (done.exit_code, "may refuse its tokens" in done.stderr) == (0, True)
    assert show(run)["signs_in"] == "other"


def test_failover_without_a_standby(run: Run) -> None:
    told(run("keysets", "create", *DEMO))
    refused(run("keysets", "failover", "demo"), 2, "no standby")
    refused(run("keysets", "failover", "absent"), 1, "absent")


def test_migrate_turn_round_and_stop(run: Run) -> None:
    told(run("keysets", "create", *DEMO))
    assert told(run("keysets", "migrate", "demo"))["stage"] == "settled"
    tried = run("keysets", "migrate", "demo", "--to", "other", "--dry-run")
    assert "would: A key is made in other" in tried.stderr
    assert show(run)["backend"] == "fake"
    assert run("keysets", "migrate", "demo", "--to", "other").exit_code == 0
    shown = told(run("keysets", "migrate", "demo", "--status"))
    assert (shown["stage"], shown["signs_in"], shown["backend"]) == ("scheduled", "fake", "other")
    assert shown["takes_over_at"].endswith("Z")
    assert {key["backend"] for key in shown["left_behind"]} == {"fake"}
    assert run("keysets", "migrate", "demo", "--stop").exit_code == 0
    assert show(run)["backend"] == "fake"
    refused(run("keysets", "migrate", "demo", "--stop"), 2, "No migration")
    refused(run("keysets", "migrate", "demo", "--to", "fake"), 2, "is in fake")
    refused(run("keysets", "migrate", "demo", "--to", "other", "--stop"), 2, "Say one of")


def test_backends(run: Run, fakes: dict[str, LastingBackend]) -> None:
    told(run("keysets", "create", *DEMO, "--standby", "other"))
    rows = {row["name"]: row for row in told(run("backends"))}
    assert {row["state"] for row in rows.values()} == {"up"}
    assert (rows["fake"]["signing"], rows["other"]["signing"]) == (["demo"], [])
    assert rows["other"]["keysets"] == ["demo"]
    fakes["fake"].break_with(GONE)
    rows = {row["name"]: row for row in told(run("backends"), 3)}
    assert (rows["fake"]["state"], rows["fake"]["reason"]) == ("down", str(GONE))
    assert (rows["fake"]["cannot_sign"], rows["other"]["cannot_sign"]) == (["demo"], [])
    fakes["fake"].break_with(BackendDenied("The PIN is wrong."))
    told(run("backends"), 4)
    fakes["other"].break_with(GONE)
    told(run("backends"), 3)
