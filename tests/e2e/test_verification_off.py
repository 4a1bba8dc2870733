"""`signing.verification` in a service: it starts, signs, and its log says once what is off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.service import Installation, Server
from tests.support.softhsm import provision


@pytest.mark.parametrize(("verification", "said"), [("sampled", "most"), ("off", "all")])
def test_the_log_says_it_once(tmp_path: Path, verification: str, said: str) -> None:
    installation = Installation(tmp_path / "service", provision(tmp_path / "token").options())
    with installation.config.open("a") as config:
        config.write(f'\n[signing]\nverification = "{verification}"\n')
    installation.create_keyset("es", "ES256")
    server = Server(installation)
    server.start()
    try:
        token = server.sign("es").json()["token"]
        done = installation.cli("verify", "es", token)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(one) for one in server.logged().splitlines() if one.startswith("{")]
    finally:
        server.kill_all()
    (line,) = [one for one in lines if "signing.verification" in one["message"]]
    assert line["level"] == "WARNING"
    assert f'"{verification}": {said} signatures are released unverified' in line["message"]
