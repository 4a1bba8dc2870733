"""`kmsjwks audit`: what was tampered with is named; what cannot be proved is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kmsjwks.bootstrap import build, prepare_database
from kmsjwks.cli.main import main
from kmsjwks.config import load
from kmsjwks.domain.access import Action, Grant, Principal
from kmsjwks.domain.audit import GENESIS, link
from kmsjwks.services.signing import Caller, SignRequest
from tests.support.lifecycle import OPERATOR, spec
from tests.support.wiring import LastingBackend, install_backend_type, write_config

GRANT = Grant(frozenset({Action.SIGN}), ("*",))
AUDIT = """
[audit]
directory = "audit"
checkpoint_keyset = "notary"
checkpoint_targets = ["outside"]
max_file_bytes = 4096
"""


class Trail:
    """A closed chain of several files and an open one, checkpoints in two places, the keys."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.audit, self.outside = directory / "audit", directory / "outside"
        self.config, self.keys = directory / "kmsjwks.toml", directory / "keys.json"

    def run(self, *words: str | Path) -> Result:
        return CliRunner().invoke(main, [str(word) for word in words])

    def verify(self, *more: str | Path, keys: Path | None = None) -> Result:
        given = ("--checkpoints", self.outside, "--keys", keys or self.keys)
        return self.run("-o", "json", "audit", "verify", self.audit, *given, *more)

    def chains(self) -> list[list[Path]]:
        """Their files; the closed one first."""
        by_chain: dict[str, list[Path]] = {}
        for path in sorted(self.audit.glob("*.jsonl"), key=lambda one: one.stem.split("-")[3]):
            by_chain.setdefault(path.stem.split("-")[2], []).append(path)
        return sorted(by_chain.values(), key=lambda some: b"audit.closed" not in _bytes(some[-1]))

    def checkpoints(self) -> list[Path]:
        return sorted(self.outside.iterdir())


def _bytes(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trail")
    with pytest.MonkeyPatch.context() as patch:
        install_backend_type(patch, LastingBackend())
        settings = load(write_config(directory, AUDIT), environ={})
        prepare_database(settings)
        service = build(settings, {})
        service.keysets.create(spec(), OPERATOR)
        service.keysets.create(spec("notary"), OPERATOR)
        for number in range(40):
            caller = Caller(Principal(f"client-{number % 2}", (GRANT,)), f"r-{number}")
            service.signing.sign_jwt(caller, "demo", SignRequest({"sub": "a", "jti": f"j{number}"}))
            if number % 10 == 9:
                assert service.checkpoints is not None
                service.checkpoints.once()
        service.close()
        running = build(settings, {})
        for _ in range(3):
            running.signing.sign_jwt(Caller(Principal("late", (GRANT,)), "r"), "demo",
                                     SignRequest({"sub": "a"}))  # fmt: skip
        assert running.checkpoints is not None
        running.checkpoints.once()
        running.signing.sign_jwt(
            Caller(Principal("late", (GRANT,)), "r"), "demo", SignRequest({"sub": "a"})
        )
        keys = CliRunner().invoke(main, ["--config", str(settings.config_path), "audit", "keys"])
        assert keys.exit_code == 0, keys.stderr
        (directory / "keys.json").write_text(keys.stdout)
        # Killed: the chain stays open.
    return directory


@pytest.fixture
def trail(pristine: Path, tmp_path: Path) -> Trail:
    copied = tmp_path / "trail"
    shutil.copytree(pristine, copied)
    return Trail(copied)


def found(result: Result, code: int) -> dict[str, Any]:
    assert result.exit_code == code, (result.output, result.exception)
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def test_a_sound_trail(trail: Trail) -> None:
    shutil.copy(trail.keys, trail.directory / "elsewhere.json")
    trail.config.unlink()  # neither configuration nor database is needed
    said = found(trail.verify(), 0)
    assert said["sound"] and said["problems"] == []
    chains = sorted(said["chains"], key=lambda one: str(one["status"]))
    assert [one["status"] for one in chains] == ["closed", "open"]
    assert said["checkpoints"] == len(trail.checkpoints())
    closed, running = chains
    assert closed["proved_to_seq"] == closed["records"] - 1
    assert running["proved_to_seq"] < running["records"] - 1
    assert "1 chain of 2 whole to the last record" in said["proved"][0]
    assert "could be edited or truncated unseen" in said["proved"][1]


def test_the_table_says_the_same(trail: Trail) -> None:
    result = trail.run(
        "audit", "verify", trail.audit, "--checkpoints", trail.outside, "--keys", trail.keys
    )
    assert result.exit_code == 0
    assert "2 chains" in result.stdout
    assert "edited or truncated unseen" in result.stdout


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def edit(trail: Trail) -> None:
    path = trail.chains()[0][1]
    path.write_bytes(path.read_bytes().replace(b"client-1", b"client-9", 1))


def delete(trail: Trail) -> None:
    path = trail.chains()[0][1]
    lines = _lines(path)
    path.write_bytes(b"".join(lines[:3] + lines[4:]))


def reorder(trail: Trail) -> None:
    path = trail.chains()[0][1]
    lines = _lines(path)
    lines[2], lines[3] = lines[3], lines[2]
    path.write_bytes(b"".join(lines))


def insert(trail: Trail) -> None:
    path = trail.chains()[0][1]
    lines = _lines(path)
    path.write_bytes(b"".join([*lines[:3], lines[2], *lines[3:]]))


def truncate_closed(trail: Trail) -> None:
    path = trail.chains()[0][-1]
    path.write_bytes(b"".join(_lines(path)[:-1]))


def truncate_open(trail: Trail) -> None:
    path = trail.chains()[1][-1]
    path.write_bytes(b"".join(_lines(path)[:-3]))


def remove_last_file(trail: Trail) -> None:
    trail.chains()[0][-1].unlink()


def remove_middle_file(trail: Trail) -> None:
    trail.chains()[0][1].unlink()


def remove_chain(trail: Trail) -> None:
    for path in trail.chains()[0]:
        path.unlink()


def swap_files(trail: Trail) -> None:
    one, other = trail.chains()[0][0], trail.chains()[0][1]
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def foreign_file(trail: Trail) -> None:
    trail.chains()[0][1].write_bytes(trail.chains()[1][0].read_bytes())


def remake_chain(trail: Trail) -> None:
    """All of it anew, every hash right: only a checkpoint can tell."""
    previous, sequence = GENESIS, 0
    for path in trail.chains()[0]:
        made = []
        for line in _lines(path):
            body = line[: line.rindex(b',"chain":"')].replace(b"client-1", b"client-9") + b"}"
            text, previous = link(body, path.stem.split("-")[2], sequence, previous)
            made.append(text + b"\n")
            sequence += 1
        path.write_bytes(b"".join(made))


@pytest.mark.parametrize(
    ("tamper", "kind", "where"),
    [
        (edit, "edited", 1),
        (delete, "deleted", 1),
        (reorder, "reordered", 1),
        (insert, "duplicate", 1),
        (truncate_closed, "truncated", -1),
        (truncate_open, "truncated", None),
        (remove_last_file, "missing-file", -2),
        (remove_middle_file, "missing-file", 2),
        (remove_chain, "missing-file", None),
        (swap_files, "swapped-file", 0),
        (foreign_file, "swapped-file", 1),
        (remake_chain, "rewritten", None),
    ],
)
def test_tampering_is_named(
    trail: Trail, tamper: Callable[[Trail], None], kind: str, where: int | None
) -> None:
    files = trail.chains()[0]
    tamper(trail)
    said = found(trail.verify(), 5)
    (problem,) = said["problems"]
    assert problem["kind"] == kind
    if where is not None:
        assert problem["file"] == files[where].name
    assert not said["sound"]
    table = trail.run(
        "audit", "verify", trail.audit, "--checkpoints", trail.outside, "--keys", trail.keys
    )
    assert table.exit_code == 5
    assert f"FAIL {problem['file']}" in table.stdout
    assert kind in table.stdout


def test_what_only_checkpoints_show_is_not_seen_without_them(trail: Trail) -> None:
    truncate_closed(trail)
    result = trail.run("-o", "json", "audit", "verify", trail.audit)
    said = found(result, 0)
    assert said["checkpoints"] == 0
    assert said["notes"] == ["No checkpoint was used: give --keys FILE."]
    assert said["proved"][-1].startswith("Without checkpoints, a whole chain could be removed")


def _other_kind(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")


@pytest.mark.parametrize("kind", ["pipe", "directory", "link"])
def test_what_is_no_file_is_a_missing_one(trail: Trail, kind: str) -> None:
    """It neither holds up verification nor hides what else is wrong."""
    files = trail.chains()[0]
    _other_kind(files[1], kind)
    (problem,) = found(trail.verify(), 5)["problems"]
    assert (problem["kind"], problem["file"]) == ("missing-file", files[2].name)


def test_a_directory_without_a_trail_proves_nothing(trail: Trail, tmp_path: Path) -> None:
    """Another than was meant, or one that somebody emptied."""
    result = trail.run("audit", "verify", tmp_path / "trail" / "outside")
    assert result.exit_code == 2
    assert "no audit file" in result.stderr


def test_files_that_were_not_looked_at_are_named(trail: Trail) -> None:
    (trail.audit / "old.jsonl").write_text("{}")
    assert any("old.jsonl" in note for note in found(trail.verify(), 0)["notes"])


def _resign(token: str, payload: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    """The payload replaced, the signature kept."""
    head, body, tail = token.strip().split(".")
    members = payload(json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4))))
    made = urlsafe_b64encode(json.dumps(members, separators=(",", ":")).encode()).rstrip(b"=")
    return f"{head}.{made.decode()}.{tail}\n"


def test_a_forged_checkpoint(trail: Trail) -> None:
    path = trail.checkpoints()[1]
    path.write_text(_resign(path.read_text(), lambda one: {**one, "time": one["time"] + 1}))
    kinds = {one["kind"] for one in found(trail.verify(), 5)["problems"]}
    assert kinds == {"forged", "missing-checkpoint"}


@pytest.mark.parametrize("alg", ["none", "HS256", "ES384"])
def test_a_checkpoint_with_another_alg(trail: Trail, alg: str) -> None:
    path = trail.checkpoints()[-1]
    head, body, tail = path.read_text().strip().split(".")
    header = {**json.loads(urlsafe_b64decode(head + "==")), "alg": alg}
    made = urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    path.write_text(f"{made}.{body}.{'' if alg == 'none' else tail}")
    (problem,) = found(trail.verify(), 5)["problems"]
    assert (problem["kind"], problem["file"]) == ("forged", path.name)


def test_a_checkpoint_by_a_foreign_key(trail: Trail, pristine: Path) -> None:
    keys = json.loads(trail.keys.read_text())
    used = json.loads(urlsafe_b64decode(trail.checkpoints()[0].read_text().split(".")[0] + "=="))
    keys["keys"] = [one for one in keys["keys"] if one["kid"] != used["kid"]]
    assert len(keys["keys"]) == 1  # the spare
    other = trail.directory / "other.json"
    other.write_text(json.dumps(keys))
    said = found(trail.verify(keys=other), 5)
    assert {one["kind"] for one in said["problems"]} == {"foreign-key"}
    assert said["checkpoints"] == 0


def test_a_checkpoint_that_was_removed_in_between(trail: Trail) -> None:
    trail.checkpoints()[1].unlink()
    (problem,) = found(trail.verify(), 5)["problems"]
    assert problem["kind"] == "missing-checkpoint"


def test_the_newest_checkpoint_was_removed_or_replaced_by_an_old_one(trail: Trail) -> None:
    """A process that is killed before it has kept it leaves the same: that is no contradiction."""
    said = "says that a later checkpoint was signed, which is not here"
    assert not any(said in one for one in found(trail.verify(), 0)["proved"])
    running = trail.chains()[1][0].name.split("-")[2]
    newest = max(path for path in trail.checkpoints() if running in path.name)
    shutil.copy(next(path for path in trail.checkpoints() if running not in path.name), newest)
    assert sum(said in one for one in found(trail.verify(), 0)["proved"]) == 1


def test_a_file_of_all_checkpoints_will_do(trail: Trail) -> None:
    every = trail.directory / "all.txt"
    every.write_text("".join(path.read_text() for path in trail.checkpoints()))
    result = trail.run(
        "-o", "json", "audit", "verify", trail.audit, "--checkpoints", every, "--keys", trail.keys
    )
    assert found(result, 0)["checkpoints"] == len(trail.checkpoints())


def test_checkpoints_of_other_directories_can_be_left_out(trail: Trail) -> None:
    remove_chain(trail)
    said = found(trail.verify("--ignore-other-chains"), 0)
    assert len(said["chains"]) == 1
    assert said["checkpoints"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda key: {**key, "kid": "x" * 43}, "not the RFC 7638 thumbprint"),
        (lambda key: {**key, "d": "AAAA"}, "private member"),
        (lambda key: {**key, "alg": "ES384"}, "names no algorithm"),
        (lambda key: {**key, "alg": "none"}, "names no algorithm"),
    ],
)
def test_keys_that_are_refused(
    trail: Trail, change: Callable[[dict[str, Any]], dict[str, Any]], said: str
) -> None:
    keys = json.loads(trail.keys.read_text())
    trail.keys.write_text(json.dumps({"keys": [change(keys["keys"][0])]}))
    result = trail.verify()
    assert result.exit_code != 0
    assert result.stdout == ""
    assert said in result.stderr


def test_checkpoints_without_keys_are_refused(trail: Trail) -> None:
    result = trail.run("audit", "verify", trail.audit, "--checkpoints", trail.outside)
    assert result.exit_code == 2
    assert "--keys" in result.stderr


def test_the_configured_trail(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    install_backend_type(monkeypatch, LastingBackend())
    result = trail.run("--config", trail.config, "-o", "json", "audit", "verify")
    assert found(result, 0)["checkpoints"] == len(trail.checkpoints())
    truncate_closed(trail)
    found(trail.run("--config", trail.config, "-o", "json", "audit", "verify"), 5)


def test_keys_are_those_of_all_generations_and_public(trail: Trail) -> None:
    keys = json.loads(trail.keys.read_text())["keys"]
    assert len(keys) == 2
    assert not any({"d", "p", "q", "k"} & one.keys() for one in keys)


def _records(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_tail_and_search(trail: Trail) -> None:
    where = ("--directory", trail.audit)
    last = _records(trail.run("-o", "json", "audit", "tail", "-n", "2", *where))
    assert [one["principal"] for one in last if "principal" in one] == ["late"]
    (one,) = _records(trail.run("-o", "json", "audit", "search", "--jti", "j7", *where))
    assert (one["principal"], one["event"]) == ("client-1", "jwt.signed")
    by_kid = _records(trail.run("-o", "json", "audit", "search", "--kid", one["kid"], *where))
    assert {each["kid"] for each in by_kid} == {one["kid"]}
    times = [each["time"] for each in by_kid]
    assert times == sorted(times)
    both = ("--event", "jwt.*", "--principal", "client-0", "--limit", "5")
    assert len(_records(trail.run("-o", "json", "audit", "search", *both, *where))) == 5
    assert _records(trail.run("-o", "json", "audit", "search", "--until", "1d", *where)) == []
    assert len(_records(trail.run("-o", "json", "audit", "search", "--since", "1h", *where))) > 40


def test_tail_goes_on_with_what_comes(trail: Trail) -> None:
    words = ("-o", "json", "audit", "tail", "-f", "-n", "2", "--directory", str(trail.audit))
    path = trail.chains()[1][-1]
    before = [json.loads(line) for line in _lines(path)[-2:]]
    with subprocess.Popen(
        [sys.executable, "-m", "kmsjwks.cli.main", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline()) for _ in range(2)] == before
        with path.open("a") as file:
            file.write('{"event":"late","time":1,"chain":"c","seq":99}\n')
        assert json.loads(process.stdout.readline())["event"] == "late"
        process.terminate()


def test_a_table_obeys_no_control_characters(trail: Trail) -> None:
    path = trail.chains()[1][-1]
    with path.open("ab") as file:
        file.write(b'{"event":"x","time":1,"principal":"\\u001b[2Jroot"}\n')
    result = trail.run("audit", "search", "--event", "x", "--directory", trail.audit)
    assert "\x1b" not in result.stdout
    assert "\\x1b[2Jroot" in result.stdout


def test_publish_fills_what_is_missing(trail: Trail) -> None:
    gone = trail.checkpoints()[0]
    content = gone.read_bytes()
    gone.unlink()
    result = trail.run("--config", trail.config, "audit", "publish")
    assert (result.exit_code, gone.name in result.stdout) == (0, True)
    assert gone.read_bytes() == content
    assert trail.run("--config", trail.config, "audit", "publish").stdout == ""


def test_config_check_says_what_no_checkpoints_mean(
    trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_backend_type(monkeypatch, LastingBackend())
    trail.config.write_text('[backends.fake]\ntype = "fake"\n')
    result = trail.run("--config", trail.config, "config", "check")
    assert "could be removed unseen" in result.stderr
    assert os.listdir(trail.outside)
