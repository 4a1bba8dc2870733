"""What stays in the environment of a serving process, and how the rest reaches who needs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kmsjwks.backends.pkcs11.settings import parse_settings
from kmsjwks.cli.scrubbing import with_password
from kmsjwks.publishing.s3 import connect_s3

KEPT = {
    "PATH": os.environ["PATH"],
    "HOME": "/home/x",
    "LC_ALL": "C.UTF-8",
    "SOFTHSM2_CONF": "/etc/softhsm2.conf",
    "AWS_REGION": "eu-central-1",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/run/token",
    "PGPASSFILE": "/etc/pgpass",
    "PGSSLMODE": "verify-full",
    "HTTPS_PROXY": "http://proxy:3128",
    "CREDENTIALS_DIRECTORY": "/run/credentials/x",
    "PYTHONPATH": os.environ.get("PYTHONPATH", "."),
}
DROPPED = {
    "KMSJWKS_DATABASE__URL": "postgresql://a:b@c/d",
    "KMSJWKS_BACKENDS__X__PIN_FILE": "/run/pin",
    "AWS_ACCESS_KEY_ID": "AKIA",
    "AWS_SECRET_ACCESS_KEY": "s",
    "AWS_SESSION_TOKEN": "t",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN": "t",
    "PGPASSWORD": "p",
    "CLOUDHSM_PIN": "user:1234",
    "ALL_PROXY": "http://user:pass@proxy:3128",
    "VAULT_TOKEN": "t",
    "ANYTHING": "x",
    "NOT ASCII \udcff": "\udcff",
}
SCRUB = """
import json, os
from pathlib import Path
from kmsjwks.cli.scrubbing import scrub_environment
before = scrub_environment()
child = os.popen("env").read()
shown = Path("/proc/self/environ").read_bytes().strip(b"\\0").decode("utf-8", "replace")
print(json.dumps([dict(os.environ), before, child, shown]))
"""


def test_only_what_is_needed_stays() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRUB], env={**KEPT, **DROPPED}, capture_output=True, check=True
    )
    live, before, child, shown = json.loads(done.stdout)
    live.pop("LC_CTYPE", None)  # Python's own
    assert live == KEPT
    assert before.items() >= {**KEPT, **DROPPED}.items()
    assert [name for name in DROPPED if f"{name}=" in child] == []
    assert all(f"{name}={value}\n" in child for name, value in KEPT.items())
    assert shown == ""


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("postgresql://a@h/d", "postgresql://a@h/d?password=p%40%3A%26"),
        ("postgresql://a@/d?host=/run", "postgresql://a@/d?host=/run&password=p%40%3A%26"),
        ("postgresql://a:own@h/d", "postgresql://a:own@h/d"),
        ("postgresql://a@h/d?password=own", "postgresql://a@h/d?password=own"),
        ("sqlite:///x.db", "sqlite:///x.db"),
    ],
)
def test_the_password_of_libpq(url: str, wanted: str) -> None:
    assert with_password(url, {"PGPASSWORD": "p@:&"}) == wanted
    assert with_password(url, {}) == url


def test_a_pin_command_has_the_environment_of_the_start(tmp_path: Path) -> None:
    options = {
        "module_path": "/module.so",
        "token_label": "x",
        "pin_command": ["/bin/sh", "-c", 'echo "$VAULT_TOKEN-$KMSJWKS_DATABASE__URL"'],
    }
    settings = parse_settings("x", options, base=tmp_path, state=tmp_path, environ=DROPPED_ASCII)
    assert settings.pin is not None
    assert settings.pin.read() == "t-"
    assert "AKIA" not in repr(settings)


DROPPED_ASCII = {name: value for name, value in DROPPED.items() if name.isascii()}


def test_s3_has_its_access_key() -> None:
    client = connect_s3("http://127.0.0.1:1", DROPPED_ASCII)
    credentials = client._request_signer._credentials  # type: ignore[attr-defined]
    assert (credentials.access_key, credentials.secret_key, credentials.token) == ("AKIA", "s", "t")
