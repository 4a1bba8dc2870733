"""A second person at the command line: who somebody is, proposals, exit codes."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kmsjwks.cli import session
from kmsjwks.cli.main import main
from tests.support.wiring import LastingBackend, install_backends, write_config

Run = Callable[..., Result]
CONFIG = """
[approvals]
required_for = ["destroy", "undo-compromise"]
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run(account, *words)``"""
    install_backends(monkeypatch, {"fake": LastingBackend()})
    config = write_config(tmp_path, CONFIG)

    def invoke(account: str, *words: str) -> Result:
        with monkeypatch.context() as patch:
            patch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_name=account))
            return CliRunner().invoke(main, ["--config", str(config), "-o", "json", *words])

    made = invoke("olga", "keysets", "create", "demo", "--alg", "ES256")
    assert made.exit_code == 0, made.output
    return invoke


def told(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def key(run: Run, state: str) -> dict[str, Any]:
    found = told(run("olga", "keys", "list"))
    return next(one for one in found if one["state"] == state)


def test_destroy_takes_two(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("olga", "rotate", "--due")
    kid = key(run, "pre-activation")["kid"]
    assert told(run("olga", "keys", "proposals")) == []
    asked = run("olga", "keys", "destroy", kid, "--yes")
    assert asked.exit_code == 0
    assert "Nothing has changed yet." in asked.stderr
    (waiting,) = told(run("paul", "keys", "proposals", "--keyset", "demo"))
    assert (waiting["act"], waiting["kid"], waiting["proposed_by"]) == ("destroy", kid, "cli:olga")
    assert waiting["id"] in asked.stderr

    monkeypatch.setenv("LOGNAME", "paul")  # is not who runs the process
    monkeypatch.setenv("USER", "paul")
    refused = run("olga", "keys", "approve", waiting["id"], "--yes")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "which is you" in refused.stderr
    assert run("paul", "keys", "approve", waiting["id"]).exit_code == 2  # no terminal, no --yes
    assert "would: " in run("paul", "keys", "approve", waiting["id"], "--dry-run").stderr
    done = run("paul", "keys", "approve", waiting["id"], "--yes")
    assert done.exit_code == 0, done.output
    assert f"Key {kid} is destroyed at" in done.stderr
    assert told(run("olga", "keys", "proposals")) == []
    (ended,) = told(run("olga", "keys", "proposals", "--all"))
    assert (ended["state"], ended["approved_by"]) == ("approved", "cli:paul")


def test_a_compromise_by_mistake_is_undone_by_two(run: Run) -> None:
    kid = key(run, "active")["kid"]
    declared = run("olga", "keys", "compromise", kid, "--yes")
    assert declared.exit_code == 0
    assert "undo-compromise" in declared.stderr
    assert key(run, "compromised")["kid"] == kid
    (dates,) = [one for one in told(run("olga", "keysets", "show", "demo"))["dates"]
                if one["kid"] == kid and one["what"] == "will be destroyed"]  # fmt: skip
    assert "can be undone until" in dates["why"]
    assert run("olga", "keys", "undo-compromise", kid, "--yes").exit_code == 0
    (waiting,) = told(run("olga", "keys", "proposals"))
    done = run("paul", "keys", "approve", waiting["id"], "--yes")
    assert done.exit_code == 0, done.output
    assert "never signs again" in done.stderr
    assert key(run, "deactivated")["kid"] == kid
    refused = run("olga", "keys", "undo-compromise", kid, "--yes")
    assert (refused.exit_code, "not compromised" in refused.stderr) == (1, True)


def test_an_account_without_a_name_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert session.operator().name == "cli:uid-4711"
