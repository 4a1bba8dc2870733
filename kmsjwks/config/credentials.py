"""What clients authenticate with, from data of any shape: all mistakes show at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kmsjwks.config.places import Location


def credentials(data: Mapping[str, Any]) -> Iterator[tuple[Location, str, str]]:
    """Location, kind and a text that is the same for the same credential; trusted issuers too."""
    for index, issuer in enumerate(_issuers(data)):
        if isinstance(issuer, str):
            yield ("oidc", index, "issuer"), "issuer", issuer
    for client in _clients(data):
        yield from _tokens(data, client)
        for kind in ("oidc", "certificates"):
            for location, item in _items(data, client, kind):
                if isinstance(item, Mapping) and item:
                    yield location, "identity", kind + json.dumps(item, sort_keys=True, default=str)


def _tokens(data: Mapping[str, Any], client: str) -> Iterator[tuple[Location, str, str]]:
    for location, item in _items(data, client, "token_sha256"):
        if isinstance(item, str):
            yield location, "token", item
    for location, item in _items(data, client, "tokens"):
        if isinstance(item, Mapping) and isinstance(item.get("sha256"), str):
            yield (*location, "sha256"), "token", item["sha256"]


def unknown_issuers(data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    known = _issuers(data)
    for client in _clients(data):
        for location, item in _items(data, client, "oidc"):
            issuer = item.get("issuer") if isinstance(item, Mapping) else None
            if isinstance(issuer, str) and issuer not in known:
                yield (*location, "issuer"), issuer


def _issuers(data: Mapping[str, Any]) -> list[object]:
    tables = data.get("oidc")
    return [
        table.get("issuer") if isinstance(table, Mapping) else None
        for table in (tables if isinstance(tables, list) else ())
    ]


def _clients(data: Mapping[str, Any]) -> Iterator[str]:
    clients = data.get("clients")
    yield from clients if isinstance(clients, Mapping) else ()


def _items(data: Mapping[str, Any], client: str, name: str) -> Iterator[tuple[Location, Any]]:
    table = data["clients"][client]
    items = table.get(name) if isinstance(table, Mapping) else None
    for index, item in enumerate(items if isinstance(items, list) else ()):
        yield ("clients", client, name, index), item
