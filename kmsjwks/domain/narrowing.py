"""What a grant allows the tokens it signs to say: subjects, audiences, claims, lifetime."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_SPACE_DELIMITED = frozenset({"scope"})  # RFC 8693 section 4.2


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What would be signed; ``lifetime`` in seconds, from now to ``exp``, None where it is not
    known and so not judged."""

    claims: Mapping[str, Any]
    lifetime: int | None


@dataclass(frozen=True, slots=True)
class Breach:
    """``member`` is the claim, or ``ttl``."""

    member: str
    why: str


@dataclass(frozen=True, slots=True)
class Narrowing:
    """Empty members do not narrow. In texts ``*`` stands for any characters, nothing else is
    special. A claim that is narrowed has to be there, and of a list every item has to be allowed.

    ``claims`` gives the allowed values of each claim; those that are no text have to be equal, in
    type too. ``max_lifetime`` is in seconds.
    """

    subjects: tuple[str, ...] = ()
    audiences: tuple[str, ...] = ()
    claims: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, hash=False)
    max_lifetime: int | None = None

    def breach(self, request: TokenRequest) -> Breach | None:
        """The first thing that is not allowed; None where all is."""
        for claim, allowed in self._members():
            why = _breach(claim, allowed, request.claims)
            if why:
                return Breach(claim, why)
        maximum, wanted = self.max_lifetime, request.lifetime
        if maximum is not None and wanted is not None and wanted > maximum:
            return Breach(
                "ttl",
                f"a lifetime of {wanted} seconds is above the grant's maximum of {maximum}; "
                f"send a ttl of at most {maximum}.",
            )
        return None

    def described(self) -> tuple[str, ...]:
        """Each condition in words, for whoever reviews the grant."""
        conditions = [f"{claim} {_choice(allowed)}" for claim, allowed in self._members()]
        if self.max_lifetime is not None:
            conditions.append(f"a lifetime of at most {self.max_lifetime} s")
        return tuple(conditions)

    def _members(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        if self.subjects:
            yield "sub", self.subjects
        if self.audiences:
            yield "aud", self.audiences
        yield from self.claims.items()


NOT_NARROWED = Narrowing()


def _breach(claim: str, allowed: tuple[Any, ...], claims: Mapping[str, Any]) -> str:
    if claim not in claims:
        return f"{claim} is missing; it must be {_choice(allowed)}."
    value = claims[claim]
    if claim in _SPACE_DELIMITED and isinstance(value, str):
        value = value.split(" ")
    items = value if isinstance(value, list) else [value]
    if not items:
        return f"{claim} is an empty list; it must be {_choice(allowed)}."
    for item in items:
        if not any(_allows(one, item) for one in allowed):
            # Without the value: answers are written down in more places than claims should be.
            return f"{claim} has a value that is not allowed; it must be {_choice(allowed)}."
    return ""


def _allows(allowed: Any, value: Any) -> bool:
    if isinstance(allowed, str):
        return isinstance(value, str) and matches(allowed, value)
    # As JSON, because to Python true is 1 and 1 is 1.0.
    return _json(allowed) == _json(value)


def matches(pattern: str, text: str) -> bool:
    """Whether ``text`` is ``pattern``, in which ``*`` stands for any characters. Takes time in
    proportion to the text, whatever the pattern."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    *middle, last = rest
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    position, end = len(first), len(text) - len(last)
    for part in middle:
        position = text.find(part, position, end)
        if position < 0:
            return False
        position += len(part)
    return True


def _choice(allowed: tuple[Any, ...]) -> str:
    return " or ".join(_json(one) for one in allowed)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
