"""A real SoftHSM token, provisioned by the script that users run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmsjwks.backends.pkcs11.backend import Pkcs11Backend
from kmsjwks.backends.pkcs11.library import Libraries
from kmsjwks.backends.pkcs11.link import LinkHooks
from kmsjwks.backends.pkcs11.settings import Pkcs11Settings, parse_settings

ROOT = Path(__file__).parents[2]
LABEL = "kmsjwks"


@dataclass(frozen=True)
class Token:
    """A provisioned token in a directory of its own."""

    directory: Path

    @property
    def label(self) -> str:
        return LABEL

    @property
    def module(self) -> str:
        return (self.directory / "module.path").read_text().strip()

    @property
    def conf(self) -> Path:
        return self.directory / "softhsm2.conf"

    @property
    def pin_file(self) -> Path:
        return self.directory / "user.pin"

    def options(self, **changes: Any) -> dict[str, Any]:
        """The table [backends.NAME] without ``type``."""
        return {
            "module_path": self.module,
            "token_label": LABEL,
            "pin_file": str(self.pin_file),
            "environment": {"SOFTHSM2_CONF": str(self.conf)},
            **changes,
        }


def provision(directory: Path) -> Token:
    done = subprocess.run(
        [ROOT / "softhsm" / "provision.sh", directory, LABEL],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert done.returncode == 0, f"no SoftHSM token (apt-get install softhsm2): {done.stderr}"
    return Token(directory)


def add_token(token: Token, other: Token) -> None:
    """Show ``other`` in the same SoftHSM too; its PIN stays its own."""
    for directory in (other.directory / "tokens").iterdir():
        shutil.copytree(directory, token.directory / "tokens" / directory.name)


def settings(options: Mapping[str, Any], state: Path, name: str = "softhsm") -> Pkcs11Settings:
    return parse_settings(name, options, base=state, state=state, environ={})


def open_backend(
    options: Mapping[str, Any],
    state: Path,
    libraries: Libraries,
    hooks: LinkHooks | None = None,
) -> Pkcs11Backend:
    """``libraries`` is one a process, as in the composition root."""
    return Pkcs11Backend(settings(options, state), libraries, hooks)
