"""Requests checked against AWS's own model of KMS, as botocore carries it."""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.support.kms.errors import AwsError, constraint

# Limits that the API reference gives in words and the model does not have.
_DOCUMENTED_MAXIMA = {
    ("ListAliases", "Limit"): 100,
    ("ListResourceTags", "Limit"): 50,
    ("ScheduleKeyDeletion", "PendingWindowInDays"): 30,
}
_DOCUMENTED_MINIMA = {("ScheduleKeyDeletion", "PendingWindowInDays"): 7}

_TYPES: Mapping[str, type[Any]] = {
    "string": str,
    "blob": str,
    "integer": int,
    "boolean": bool,
    "list": list,
    "structure": dict,
}


class ServiceModel:
    def __init__(self) -> None:
        package = find_spec("botocore")
        assert package is not None
        assert package.origin is not None
        path = Path(package.origin).with_name("data") / "kms/2014-11-01/service-2.json.gz"
        model = json.loads(gzip.decompress(path.read_bytes()))
        self._shapes: dict[str, Any] = model["shapes"]
        self._operations: dict[str, Any] = model["operations"]

    def parameters(self, operation: str, body: object) -> dict[str, Any]:
        """The request with its blobs decoded; the first broken constraint raises AwsError."""
        if operation not in self._operations:
            raise AwsError("UnknownOperationException")
        if not isinstance(body, dict):
            raise AwsError("SerializationException", "Start of structure expected.")
        checked: dict[str, Any] = self._structure(
            self._operations[operation]["input"]["shape"], body, ""
        )
        for (name, member), top in _DOCUMENTED_MAXIMA.items():
            if name == operation and checked.get(member, 0) > top:
                raise _bound(checked[member], member, f"less than or equal to {top}")
        for (name, member), least in _DOCUMENTED_MINIMA.items():
            if name == operation and checked.get(member, least) < least:
                raise _bound(checked[member], member, f"greater than or equal to {least}")
        return checked

    def _structure(self, name: str, value: dict[str, Any], path: str) -> dict[str, Any]:
        shape = self._shapes[name]
        for required in shape.get("required", ()):
            if value.get(required) is None:
                raise constraint("null", path + _camel(required), "Member must not be null")
        return {
            member: self._value(shape["members"][member]["shape"], item, path + _camel(member))
            for member, item in value.items()
            if member in shape["members"] and item is not None
        }

    def _value(self, name: str, value: Any, path: str) -> Any:
        shape = self._shapes[name]
        kind = shape["type"]
        if type(value) is not _TYPES[kind]:
            raise AwsError("SerializationException", f"Unexpected value type at {path}")
        if kind == "structure":
            return self._structure(name, value, path + ".")
        if kind == "list":
            member = shape["member"]["shape"]
            _lengths(shape, len(value), value, path)
            return [
                self._value(member, item, f"{path}.{index}.member")
                for index, item in enumerate(value, 1)
            ]
        if kind == "blob":
            return _blob(shape, value, path)
        _scalar(shape, value, path)
        return value


def _blob(shape: Mapping[str, Any], value: str, path: str) -> bytes:
    try:
        decoded = base64.b64decode(value, validate=True)
    except binascii.Error:
        raise AwsError("SerializationException", "Invalid Base64 string") from None
    _lengths(shape, len(decoded), None, path)
    return decoded


def _lengths(shape: Mapping[str, Any], length: int, value: object, path: str) -> None:
    shown = "" if value is None else f"'{value}'"
    if length < shape.get("min", 0):
        rule = f"Member must have length greater than or equal to {shape['min']}"
        raise constraint(shown, path, rule)
    if length > shape.get("max", length):
        rule = f"Member must have length less than or equal to {shape['max']}"
        raise constraint(shown, path, rule)


def _scalar(shape: Mapping[str, Any], value: Any, path: str) -> None:
    if "enum" in shape and value not in shape["enum"]:
        rule = f"Member must satisfy enum value set: [{', '.join(shape['enum'])}]"
        raise constraint(f"'{value}'", path, rule)
    if isinstance(value, str):
        _lengths(shape, len(value), value, path)
        if "pattern" in shape and not re.fullmatch(shape["pattern"], value):
            rule = f"Member must satisfy regular expression pattern: {shape['pattern']}"
            raise constraint(f"'{value}'", path, rule)
    elif shape["type"] == "integer":
        if value < shape.get("min", value):
            raise _bound(value, path, f"greater than or equal to {shape['min']}")
        if value > shape.get("max", value):
            raise _bound(value, path, f"less than or equal to {shape['max']}")


def _bound(value: int, member: str, bound: str) -> AwsError:
    return constraint(f"'{value}'", _camel(member), f"Member must have value {bound}")


def _camel(name: str) -> str:
    return name[0].lower() + name[1:]
