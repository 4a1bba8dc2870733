"""Installs the peers into bench/.cache, never into the product's environment."""

from __future__ import annotations

import shutil
import subprocess
import sys

from bench.places import BENCH, CACHE, NODE, PEERS

_REQUIREMENTS = BENCH / "peers" / "requirements.txt"


def install() -> list[str]:
    """What could not be installed, in words; rows that need it say so again."""
    CACHE.mkdir(exist_ok=True)
    return [problem for problem in (_python(), _node()) if problem]


def _python() -> str | None:
    marker, wanted = PEERS / "requirements.txt", _REQUIREMENTS.read_text()
    if marker.exists() and marker.read_text() == wanted:
        return None
    shutil.rmtree(PEERS, ignore_errors=True)
    pip = [str(PEERS / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r"]
    problem = _run([sys.executable, "-m", "venv", str(PEERS)]) or _run([*pip, str(_REQUIREMENTS)])
    if problem is None:
        marker.write_text(wanted)
    return problem


def _node() -> str | None:
    source = BENCH / "peers" / "node" / "package.json"
    installed = NODE / "package.json"
    if shutil.which("npm") is None:
        return "npm is not installed"
    if installed.exists() and installed.read_text() == source.read_text():
        return None
    shutil.rmtree(NODE, ignore_errors=True)
    NODE.mkdir()
    (NODE / "package.json").write_text(source.read_text())
    problem = _run(["npm", "install", "--prefix", str(NODE), "--no-audit", "--no-fund"])
    if problem is not None:
        installed.unlink()
    return problem


def _run(words: list[str]) -> str | None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"{' '.join(words)}: {done.stderr.strip()[-400:]}"
