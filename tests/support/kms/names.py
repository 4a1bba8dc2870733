"""Aliases, tags and the listings with their pages."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.support.kms.access import Access, Call, refuse_pending
from tests.support.kms.errors import AwsError, validation
from tests.support.kms.store import Alias, Key, Settings, Store

Answer = dict[str, Any] | None

_TAG_TEXT = re.compile(r"[\w\s.:/=+\-@]*")
_TAG_QUOTA = 50  # tags a key, "Quotas" in the developer guide
_ALIAS_QUOTA = 50  # aliases a key, as above
_PREDEFINED = ("alias/aws/ebs", "alias/aws/s3")  # ListAliases has them without TargetKeyId
_DEFAULT_LIMITS = {"ListKeys": 100, "ListAliases": 50, "ListResourceTags": 50}


class Names:
    def __init__(self, store: Store, settings: Settings, access: Access) -> None:
        self._store, self._settings, self._access = store, settings, access

    def create_alias(self, call: Call) -> Answer:
        name = self._alias_name(call)
        key = self._access.key(call, "TargetKeyId")
        if (call.region, name) in self._store.aliases:
            arn = self._access.arn(call, name)
            message = f"An alias with the name {arn} already exists"
            raise AwsError("AlreadyExistsException", message)
        self._point(call, name, key)
        return None

    def update_alias(self, call: Call) -> Answer:
        name = self._alias_name(call)
        known = self._known(call, name)
        key = self._access.key(call, "TargetKeyId")
        self._access.authorize(call, self._access.arn(call, known.name))
        self._point(call, name, key)
        return None

    def _point(self, call: Call, name: str, key: Key) -> None:
        self._access.authorize(call, self._access.arn(call, name))
        refuse_pending(self._store, key)
        held = [alias for alias in self._store.aliases.values() if _points(alias, key)]
        if len(held) >= _ALIAS_QUOTA:
            raise AwsError("LimitExceededException", f"{key.arn} has too many aliases.")
        self._store.aliases[call.region, name] = Alias(name, call.region, key.id, self._store.now())
        self._store.save()

    def delete_alias(self, call: Call) -> Answer:
        name = self._alias_name(call)
        self._known(call, name)
        self._access.authorize(call, self._access.arn(call, name))
        del self._store.aliases[call.region, name]
        self._store.save()
        return None

    def _known(self, call: Call, name: str) -> Alias:
        alias = self._store.aliases.get((call.region, name))
        if alias is None:
            message = f"Alias {self._access.arn(call, name)} is not found."
            raise AwsError("NotFoundException", message)
        return alias

    def _alias_name(self, call: Call) -> str:
        name: str = call.parameters["AliasName"]
        if not name.startswith("alias/") or name == "alias/":
            raise AwsError("InvalidAliasNameException", "Invalid identifier")
        if name.startswith("alias/aws/"):
            raise AwsError("NotAuthorizedException", "alias/aws/ is reserved for AWS.")
        if ":" in name:
            raise validation(f"{name} contains invalid characters for an alias")
        return name

    def tag_resource(self, call: Call) -> Answer:
        key = self._access.key(call)
        refuse_pending(self._store, key)
        key.tags = checked_tags(key.tags, call.parameters["Tags"])
        self._store.save()
        return None

    def untag_resource(self, call: Call) -> Answer:
        key = self._access.key(call)
        refuse_pending(self._store, key)
        for name in call.parameters["TagKeys"]:
            key.tags.pop(name, None)
        self._store.save()
        return None

    def list_resource_tags(self, call: Call) -> Answer:
        key = self._access.key(call)
        tags = [{"TagKey": name, "TagValue": value} for name, value in sorted(key.tags.items())]
        return self._page(call, "Tags", tags)

    def list_keys(self, call: Call) -> Answer:
        self._access.authorize(call, "*")
        found = [
            key
            for key in self._store.keys.values()
            if key.region == call.region and not self._access.is_late(call.operation, key)
        ]
        entries = [{"KeyId": key.id, "KeyArn": key.arn} for key in sorted(found, key=_by_id)]
        return self._page(call, "Keys", entries)

    def list_aliases(self, call: Call) -> Answer:
        self._access.authorize(call, "*")
        here = [alias for alias in self._store.aliases.values() if alias.region == call.region]
        late = {
            key.id
            for key in self._store.keys.values()
            if key.region == call.region and self._access.is_late(call.operation, key)
        }
        entries = [self._alias(call, alias) for alias in here if alias.target not in late]
        if "KeyId" in call.parameters:
            key = self._access.key(call)
            entries = [entry for entry in entries if entry["TargetKeyId"] == key.id]
        else:
            entries += [
                {"AliasName": name, "AliasArn": self._access.arn(call, name)}
                for name in _PREDEFINED
            ]
        entries.sort(key=lambda entry: str(entry["AliasName"]))
        return self._page(call, "Aliases", entries)

    def _alias(self, call: Call, alias: Alias) -> dict[str, Any]:
        return {
            "AliasName": alias.name,
            "AliasArn": self._access.arn(call, alias.name),
            "TargetKeyId": alias.target,
            "CreationDate": round(alias.created, 3),
            "LastUpdatedDate": round(alias.created, 3),
        }

    def _page(self, call: Call, member: str, entries: Sequence[Mapping[str, Any]]) -> Answer:
        size: int = call.parameters.get("Limit", _DEFAULT_LIMITS[call.operation])
        if self._settings.page_size is not None:
            size = min(size, self._settings.page_size)
        names = [str(next(iter(entry.values()))) for entry in entries]
        after = _unmarked(call)
        start = sum(name <= after for name in names) if after is not None else 0
        page: dict[str, Any] = {member: entries[start : start + size], "Truncated": False}
        if start + size < len(entries):
            last = names[start + size - 1]
            page |= {"Truncated": True, "NextMarker": _marked(call, last)}
        return page


def checked_tags(present: Mapping[str, str], added: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """``present`` with ``added``, by the rules for tags of the API reference."""
    pairs = [(tag["TagKey"], tag["TagValue"]) for tag in added]
    if len({name for name, _ in pairs}) < len(pairs):
        raise AwsError("TagException", "Duplicate tag keys")
    for name, value in pairs:
        if name.lower().startswith("aws:"):
            raise AwsError("TagException", "Tag keys beginning with aws: are reserved.")
        if not _TAG_TEXT.fullmatch(name) or not _TAG_TEXT.fullmatch(value):
            raise AwsError("TagException", "A tag has characters that are not allowed.")
    tags = {**present, **dict(pairs)}
    if len(tags) > _TAG_QUOTA:
        raise AwsError("LimitExceededException", "A KMS key has at most 50 tags.")
    return tags


def _points(alias: Alias, key: Key) -> bool:
    return (alias.region, alias.target) == (key.region, key.id)


def _by_id(key: Key) -> str:
    return key.id


def _marked(call: Call, last: str) -> str:
    return base64.urlsafe_b64encode(f"{call.operation}|{call.region}|{last}".encode()).decode()


def _unmarked(call: Call) -> str | None:
    marker = call.parameters.get("Marker")
    if marker is None:
        return None
    try:
        text = base64.b64decode(marker.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        text = ""
    prefix = f"{call.operation}|{call.region}|"
    if not text.startswith(prefix):
        raise AwsError("InvalidMarkerException", "Could not deserialize the marker.")
    return text.removeprefix(prefix)
