"""Checks a merged configuration and words what is wrong, each mistake with its place."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from kmsjwks.config.credentials import credentials, unknown_issuers
from kmsjwks.config.limits import contradictions
from kmsjwks.config.places import Location, Place, Problem, setting_name, shown
from kmsjwks.config.schema import Document, fixed_settings, members
from kmsjwks.config.sources import Assignment
from kmsjwks.config.tomlfile import ConfigFile

_TYPES = {
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text, in quotes",
    "list_type": "must be a list",
    "datetime_type": "must be a time such as 2027-01-01T00:00:00Z",
    "too_short": "must not be empty",
    "missing": "is required",
}
_TABLE_EXPECTED = frozenset({"model_type", "model_attributes_type", "dict_type"})
_WITHOUT_VALUE = _TABLE_EXPECTED | {"missing", "extra_forbidden", "too_short"}


class Places:
    """Where each setting of a merged configuration was written."""

    def __init__(self, file: ConfigFile, assignments: tuple[Assignment, ...]) -> None:
        self._file = file
        self._given: dict[Location, Place] = {a.location: a.place for a in assignments}

    def of(self, location: Location) -> Place:
        """The place of a setting, or of the table that lacks it."""
        prefixes = [location[:length] for length in range(len(location), 0, -1)]
        for prefix in prefixes:
            if prefix in self._given:
                return self._given[prefix]
        for prefix in prefixes:
            if prefix in self._file.lines:
                line = self._file.lines[prefix]
                return Place(f"{self._file.path}:{line}", line=line)
            for given, place in self._given.items():
                if given[: len(prefix)] == prefix:
                    return place
        return Place(str(self._file.path))


def validate(data: Mapping[str, Any], places: Places) -> tuple[Document | None, list[Problem]]:
    """The configuration as typed models, or everything that is wrong with it."""
    problems = list(_repeated(data, places))
    try:
        document = Document.model_validate(data)
    except ValidationError as error:
        found = [_problem(detail, places) for detail in error.errors(include_url=False)]
        return None, found + problems
    for location, why in contradictions(document):
        problems.append(Problem(places.of(location), f"{setting_name(location)}: {why}"))
    return document, problems


def _problem(detail: ErrorDetails, places: Places) -> Problem:
    location = tuple(part for part in detail["loc"] if part != "[key]")
    place = places.of(location)
    message = f"{setting_name(location)}: {_rule(detail, location, place)}"
    # The key of a bad name is already in the message, as the name of the setting.
    if detail["type"] not in _WITHOUT_VALUE and detail["loc"][-1] != "[key]":
        value = shown(location, detail["input"], place)
        message += f"; you wrote {value}" if value else ""
    return Problem(place, message)


def _rule(detail: ErrorDetails, location: Location, place: Place) -> str:
    kind = detail["type"]
    context = detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind in ("literal_error", "enum"):
        return f"must be {context['expected']}"
    if kind == "extra_forbidden":
        return _unknown(location)
    if kind in _TABLE_EXPECTED:
        return f"must be a table, [{setting_name(location)}]" if location else "must be a table"
    if kind == "list_type" and not place.line:
        return "must be a list, written in JSON"
    return _TYPES.get(kind, f"is not valid ({kind})")


def _unknown(location: Location) -> str:
    """Names of list items are left out of the search: their indices name no table."""
    *table, last = location
    siblings = members(tuple(part for part in table if isinstance(part, str)))
    guess = difflib.get_close_matches(str(last), siblings, n=1)
    if guess:
        return f"unknown setting; did you mean {setting_name((*table, guess[0]))}?"
    elsewhere = [".".join(setting) for setting in fixed_settings() if setting[1] == last]
    if elsewhere:
        return f"unknown setting; did you mean {' or '.join(elsewhere)}?"
    known = ", ".join(siblings)
    return f"unknown setting; known here are {known}" if known else "unknown setting"


def _repeated(data: Mapping[str, Any], places: Places) -> Iterator[Problem]:
    """A credential that is listed twice, by whatever client; an identity of no trusted issuer.
    Works on data of any shape."""
    first: dict[str, Location] = {}
    for location, kind, value in credentials(data):
        if value not in first:
            first[value] = location
            continue
        other = setting_name(first[value])
        message = f"{setting_name(location)}: is the same {kind} as {other}; give each its own"
        yield Problem(places.of(location), message)
    for location, issuer in unknown_issuers(data):
        message = f"{setting_name(location)}: no [[oidc]] table has this issuer"
        value = shown(location, issuer, places.of(location))
        yield Problem(places.of(location), message + (f"; you wrote {value}" if value else ""))
