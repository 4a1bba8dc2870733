"""wrk with a script that checks every answer."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.model import Absent, Metrics, Refused
from bench.places import BENCH

_SCRIPT = BENCH / "lua" / "load.lua"


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent again and again; the names are those of load.lua."""

    port: int
    path: str
    method: str = "GET"
    body: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    expect: tuple[int, ...] = (200,)
    refuse: str | None = None
    pause: int | None = None
    unknown: str | None = None

    def lua(self) -> str:
        members = {
            "method": _quoted(self.method),
            "path": _quoted(self.path),
            "headers": "{" + ", ".join(
                f"[{_quoted(name)}] = {_quoted(value)}" for name, value in self.headers.items()
            ) + "}",
            "expect": "{" + ", ".join(f"[{status}] = true" for status in self.expect) + "}",
            "body": None if self.body is None else _quoted(self.body),
            "refuse": None if self.refuse is None else _quoted(self.refuse),
            "unknown": None if self.unknown is None else _quoted(self.unknown),
            "pause": self.pause,
        }  # fmt: skip
        lines = (f"  {name} = {value}," for name, value in members.items() if value is not None)
        return "return {\n" + "\n".join(lines) + "\n}\n"


def start(request: Request, file: Path, connections: int, seconds: int) -> subprocess.Popen[str]:
    """``file`` is written for the script.

    Raises:
        Absent: there is no wrk.
    """
    program = shutil.which("wrk")
    if program is None:
        raise Absent("wrk is not installed (apt-get install wrk)")
    file.touch(0o600)  # it holds a bearer token
    file.write_text(request.lua())
    return subprocess.Popen(
        [program, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s",
         "-s", str(_SCRIPT), f"http://127.0.0.1:{request.port}{request.path}", "--", str(file)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(child: subprocess.Popen[str]) -> Metrics:
    """
    Raises:
        Refused: wrk failed, or an answer was not as expected.
    """
    out, errors = child.communicate()
    if child.returncode != 0 or not out.strip():
        raise Refused(f"wrk failed: {errors.strip()[-300:]}")
    return judged(json.loads(out.strip().splitlines()[-1]), errors)


def judged(said: Mapping[str, float], errors: str = "") -> Metrics:
    """
    Raises:
        Refused: not every answer was as expected, or none came.
    """
    if said["bad"] or said["socket_errors"]:
        raise Refused(
            f"{said['bad']:.0f} of {said['requests']:.0f} answers were not as expected, "
            f"{said['socket_errors']:.0f} connections failed; the first: {errors.strip()[:300]}"
        )
    if not said["requests"] or said["checked"] < said["requests"]:
        raise Refused(f"{said['checked']:.0f} of {said['requests']:.0f} answers were checked")
    return {
        "rate": said["requests"] / said["seconds"],
        "p50": said["p50"],
        "p99": said["p99"],
        "requests": said["requests"],
    }


def load(request: Request, file: Path, connections: int, seconds: int) -> Metrics:
    """
    Raises:
        Absent, Refused: as ``start`` and ``finish``.
    """
    child = start(request, file, connections, seconds)
    try:
        return finish(child)
    finally:
        child.kill()
        child.wait()


def _quoted(text: str) -> str:
    """A Lua string, byte by byte where it is not plain."""
    plain = set(range(32, 127)) - set(b'"\\')
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03d}" for b in text.encode()) + '"'
