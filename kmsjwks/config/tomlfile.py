"""The configuration file: where it is, what it says, and on which line it says it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmsjwks.config.places import Location, Place, Problem
from kmsjwks.domain.errors import ConfigurationError

CONFIG_VARIABLE = "KMSJWKS_CONFIG"
DEFAULT_PATHS = (Path("kmsjwks.toml"), Path("/etc/kmsjwks/kmsjwks.toml"))

_KEY_PART = r"""(?:"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
_KEY = rf"{_KEY_PART}(?:[ \t]*\.[ \t]*{_KEY_PART})*"
_HEADER = re.compile(rf"\[(?P<array>\[)?[ \t]*(?P<key>{_KEY})[ \t]*\]")
_PAIR = re.compile(rf"(?P<key>{_KEY})[ \t]*=")
_TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}'''
    r"""|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*|[\[\]{}]|\n""",
    re.S,
)
_SYNTAX_ERROR = re.compile(
    r"(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)", re.S
)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file that was read. ``lines`` gives the line of each table and setting written in it.

    ``problems`` are those that kept it from being read; then ``data`` is empty.
    """

    path: Path
    data: Mapping[str, Any]
    lines: Mapping[Location, int]
    problems: tuple[Problem, ...] = ()


def find_config_file(
    path: Path | None, environ: Mapping[str, str], defaults: Sequence[Path] = DEFAULT_PATHS
) -> Path:
    """The explicit ``path``, else the one in the environment, else the first default there is.

    Raises:
        ConfigurationError: there is none; says where it was looked for.
    """
    if path is not None:
        return _existing(path, "command line")
    if named := environ.get(CONFIG_VARIABLE):
        return _existing(Path(named), f"environment {CONFIG_VARIABLE}")
    for candidate in defaults:
        if _is_file(candidate):
            return candidate
    looked_for = " and ".join(f"./{p}" if not p.is_absolute() else str(p) for p in defaults)
    raise ConfigurationError(
        [
            f"no configuration file: looked for {looked_for}; write one, or name it "
            f"with --config or {CONFIG_VARIABLE}"
        ]
    )


def _existing(path: Path, source: str) -> Path:
    if not _is_file(path):
        raise ConfigurationError([f"{source}: there is no configuration file {path}"])
    return path


def _is_file(path: Path) -> bool:
    """True also for a file that may not be looked at: reading it then tells why."""
    try:
        return path.is_file()
    except PermissionError:
        return True


def read_config_file(path: Path) -> ConfigFile:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        return _unread(path, Place(str(path)), f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        return _unread(path, Place(str(path)), f"is not UTF-8 text (byte {error.start + 1})")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return _unread(path, *_syntax_error(path, str(error)))
    return ConfigFile(path, data, scan_lines(text))


def _unread(path: Path, place: Place, message: str) -> ConfigFile:
    return ConfigFile(path, {}, {}, (Problem(place, message),))


def _syntax_error(path: Path, message: str) -> tuple[Place, str]:
    match = _SYNTAX_ERROR.fullmatch(message)
    if match is None:
        return Place(str(path)), f"is not TOML: {message}"
    if match["line"] is None:
        return Place(str(path)), f"is not TOML: {match['what']} at the end of the file"
    line, column = int(match["line"]), int(match["column"])
    return Place(f"{path}:{line}:{column}", line=line), f"is not TOML: {match['what']}"


def scan_lines(text: str) -> dict[Location, int]:
    """Where tables and settings stand in a text that tomllib has accepted. Lines count from 1.

    Members of inline tables and items of arrays are not told apart: they stand where the
    setting that holds them starts.
    """
    lines: dict[Location, int] = {}
    arrays: dict[Location, int] = {}
    table: Location = ()
    for line, statement in _statements(text):
        if header := _HEADER.match(statement):
            table = _table_location(_key_parts(header["key"]), bool(header["array"]), arrays)
            for length in range(1, len(table) + 1):
                lines.setdefault(table[:length], line)
            lines[table] = line
        elif pair := _PAIR.match(statement):
            location = (*table, *_key_parts(pair["key"]))
            for length in range(len(table) + 1, len(location) + 1):
                lines.setdefault(location[:length], line)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each statement with the line on which it starts; a value may go over many lines."""
    start, line, depth = 0, 1, 0
    started_on = 1
    for token in _TOKEN.finditer(text):
        found = token[0]
        if found == "\n" and depth == 0:
            yield started_on, text[start : token.start()].lstrip()
            start, started_on = token.end(), line + 1
        depth += (found in "[{") - (found in "]}")
        line += found.count("\n")
    yield started_on, text[start:].lstrip()


def _key_parts(key: str) -> tuple[str, ...]:
    """The parts of a dotted key, quotes and escapes resolved by tomllib itself."""
    parts: list[str] = []
    value: Any = tomllib.loads(f"{key} = 0")
    while isinstance(value, dict):
        ((part, value),) = value.items()
        parts.append(part)
    return tuple(parts)


def _table_location(
    parts: tuple[str, ...], is_array: bool, arrays: dict[Location, int]
) -> Location:
    """Put the index of the current item behind each name that is an array of tables."""
    location: Location = ()
    for position, part in enumerate(parts):
        location = (*location, part)
        if is_array and position == len(parts) - 1:
            arrays[location] = arrays.get(location, -1) + 1
        if location in arrays:
            location = (*location, arrays[location])
    return location
