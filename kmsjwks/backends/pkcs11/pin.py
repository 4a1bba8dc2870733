"""Where the PIN comes from. It is read when it is needed and kept by nobody."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kmsjwks.domain.errors import BackendUnavailable

_COMMAND_TIMEOUT = 10.0  # seconds


class PinSource(Protocol):
    def read(self) -> str:
        """
        Raises:
            BackendUnavailable: there is no PIN to be had now.
        """


@dataclass(frozen=True, slots=True)
class FilePin:
    """The first line of a file."""

    path: Path

    def read(self) -> str:
        try:
            text = self.path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BackendUnavailable(
                f"The PIN file {self.path} cannot be read. Check that it exists and that this "
                "user may read it."
            ) from error
        return _first_line(text, str(self.path))


@dataclass(frozen=True, slots=True)
class EnvironmentFilePin:
    """The first line of the file that an environment variable names."""

    variable: str
    environ: Mapping[str, str] = field(repr=False)

    def read(self) -> str:
        path = self.environ.get(self.variable)
        if not path:
            raise BackendUnavailable(
                f"The environment variable {self.variable}, which should name the PIN file, is "
                "not set."
            )
        return FilePin(Path(path)).read()


@dataclass(frozen=True, slots=True)
class CommandPin:
    """The first line that a command prints.

    ``environ`` is what it runs with, because a serving process drops its own; None for ours. The
    service's settings are left out of it.
    """

    command: tuple[str, ...]
    environ: Mapping[str, str] | None = field(default=None, repr=False)

    def read(self) -> str:
        try:
            done = subprocess.run(  # noqa: S603  # the operator's own command, no shell
                self.command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_COMMAND_TIMEOUT,
                check=True,
                text=True,
                env=self._environment(),
            )
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
            # `from None`: the exception carries the command's output.
            raise BackendUnavailable(
                f"The PIN command {self.command[0]} failed. Run it by hand as this user."
            ) from None
        return _first_line(done.stdout, self.command[0])

    def _environment(self) -> dict[str, str]:
        given = os.environ if self.environ is None else self.environ
        return {name: one for name, one in given.items() if not name.startswith("KMSJWKS_")}


@dataclass(frozen=True, slots=True)
class InlinePin:
    """A PIN written into the configuration, which must be allowed there explicitly."""

    value: str = field(repr=False)

    def read(self) -> str:
        return self.value


def _first_line(text: str, origin: str) -> str:
    pin = text.splitlines()[0] if text else ""
    if not pin:
        raise BackendUnavailable(f"{origin} gives no PIN: its first line is empty.")
    return pin
