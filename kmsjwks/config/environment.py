"""Settings from ``KMSJWKS_*`` variables and from systemd's credentials directory."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmsjwks.config import values
from kmsjwks.config.places import Place, Problem
from kmsjwks.config.schema import fixed_settings, members, setting_kind
from kmsjwks.config.sources import Assignment, lookup, parse_text, read_value, split_name
from kmsjwks.config.tomlfile import CONFIG_VARIABLE

PREFIX = "KMSJWKS_"
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
RESERVED_VARIABLES = frozenset({CONFIG_VARIABLE, "KMSJWKS_TOKEN", "KMSJWKS_URL"})
"""Variables of the program that are no settings."""

_FILE_SUFFIX = "_file"


@dataclass(frozen=True, slots=True)
class _Variable:
    """``from_file``: the variable holds the path of the file with the value."""

    name: str
    location: tuple[str, ...]
    from_file: bool

    @property
    def place(self) -> Place:
        return Place(f"environment {self.name}", confidential=self.from_file)


@dataclass(frozen=True, slots=True)
class Environment:
    """What the environment sets, lowest precedence first, and what is wrong with it."""

    assignments: tuple[Assignment, ...]
    problems: tuple[Problem, ...]


def read_environment(
    environ: Mapping[str, str], data: Mapping[str, Any], base_directory: Path
) -> Environment:
    """
    Args:
        environ: the process environment.
        data: what the configuration file says; gives the types of backend options.
        base_directory: where relative paths in ``*_FILE`` variables start.
    """
    found = [
        *_credentials(environ, data),
        *_variables(environ, data, base_directory),
    ]
    return Environment(
        tuple(item for item in found if isinstance(item, Assignment)),
        tuple(item for item in found if isinstance(item, Problem)),
    )


def _credentials(
    environ: Mapping[str, str], data: Mapping[str, Any]
) -> Iterator[Assignment | Problem]:
    """Files named like a setting. Others are ignored: units share such directories."""
    directory = environ.get(CREDENTIALS_VARIABLE)
    if not directory:
        return
    try:
        paths = sorted(path for path in Path(directory).iterdir() if path.is_file())
    except OSError as error:
        place = Place(f"environment {CREDENTIALS_VARIABLE}")
        yield Problem(place, f"{directory} cannot be read: {error.strerror}")
        return
    for path in paths:
        location = split_name(path.name)
        if location is None:
            continue
        place = Place(f"credential {path.name}", confidential=True)
        try:
            text = read_value(path)
        except ValueError as error:
            yield Problem(place, str(error))
        else:
            yield Assignment(location, parse_text(text, location, lookup(data, location)), place)


def _variables(
    environ: Mapping[str, str], data: Mapping[str, Any], base_directory: Path
) -> Iterator[Assignment | Problem]:
    by_location: dict[tuple[str, ...], list[_Variable]] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in RESERVED_VARIABLES:
            continue
        variable = _recognise(name, data)
        if variable is None:
            yield Problem(Place(f"environment {name}"), _unknown(name, data))
        else:
            by_location.setdefault(variable.location, []).append(variable)
    for variable, *others in by_location.values():
        if others:
            names = " and ".join(other.name for other in others)
            yield Problem(variable.place, f"the same setting is given by {names}; keep one")
        else:
            yield _assignment(variable, environ[variable.name], data, base_directory)


def _assignment(
    variable: _Variable, text: str, data: Mapping[str, Any], base_directory: Path
) -> Assignment | Problem:
    if variable.from_file:
        if not text:
            return Problem(variable.place, "must be the path of a file; it is empty")
        try:
            text = read_value(base_directory / text)
        except ValueError as error:
            return Problem(variable.place, f"the file it names {error}")
    location = variable.location
    value = parse_text(text, location, lookup(data, location))
    return Assignment(location, value, variable.place)


def _recognise(name: str, data: Mapping[str, Any]) -> _Variable | None:
    location = tuple(name.removeprefix(PREFIX).lower().split("__"))
    if location[0] in ("backends", "clients") and not (
        len(location) > 2 and values.is_name(location[1])
    ):
        return None
    if setting_kind(location) and not _is_file_of_option(location, data):
        return _Variable(name, location, from_file=False)
    stem = (*location[:-1], location[-1].removesuffix(_FILE_SUFFIX))
    if stem != location and all(stem) and setting_kind(stem):
        return _Variable(name, stem, from_file=True)
    return None


def _is_file_of_option(location: tuple[str, ...], data: Mapping[str, Any]) -> bool:
    """Whether a backend variable names the file of an option rather than the option itself.

    A backend has options such as ``pin_file``, and reads that file when it needs the PIN: the
    PIN must not be read here. So has one whose option of that very name is in the file.
    """
    option = location[-1]
    if location[0] != "backends" or not option.endswith(_FILE_SUFFIX):
        return False
    is_pin = option.endswith("pin_file") or "pin" in option.split("_")
    return not is_pin and lookup(data, location) is None


def _unknown(name: str, data: Mapping[str, Any]) -> str:
    guess = _closest(name.removeprefix(PREFIX), data)
    return f"unknown variable; did you mean {PREFIX}{guess}?" if guess else "unknown variable"


def _closest(name: str, data: Mapping[str, Any]) -> str | None:
    bare = name.removesuffix(_FILE_SUFFIX.upper())
    candidates = sorted({*_known_names(data), *_corrected_table(bare)})
    found = difflib.get_close_matches(bare.upper(), candidates, n=1)
    return found[0] + name[len(bare) :] if found else None


def _known_names(data: Mapping[str, Any]) -> Iterator[str]:
    for location in fixed_settings():
        yield "__".join(location).upper()
    for reserved in RESERVED_VARIABLES:
        yield reserved.removeprefix(PREFIX)
    for table in ("backends", "clients"):
        entries = data.get(table)
        for entry, options in entries.items() if isinstance(entries, Mapping) else ():
            known = options if isinstance(options, Mapping) else ()
            for option in {*known, *members((table, entry))}:
                yield "__".join((table, entry, str(option))).upper()


def _corrected_table(name: str) -> Iterator[str]:
    """``BACKEND__SOFTHSM__URI`` is right but for its first word."""
    first, *rest = name.lower().split("__")
    for table in difflib.get_close_matches(first, members(()), n=1):
        location = (table, *rest)
        if len(location) > 2 and setting_kind(location):
            yield "__".join(location).upper()
