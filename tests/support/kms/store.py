"""What the fake remembers: keys, aliases, tags and states, kept in a file across restarts."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.support.kms import keys

DAY = 86400.0  # seconds


@dataclass
class Settings:
    """What a test may change while the fake runs. Durations are in seconds."""

    account: str = "111122223333"
    page_size: int | None = None  # at most so many items a page, whatever Limit says
    visible_after: float = 0.0  # how long a new key is missing ...
    late_operations: list[str] = field(default_factory=lambda: ["ListKeys", "DescribeKey"])
    creating_for: float = 0.0  # how long a replica stays in the state Creating
    denied: list[dict[str, str]] = field(default_factory=list)  # action, region, resource
    access_keys: list[str] | None = None  # None: any access key id is known
    expired_access_keys: list[str] = field(default_factory=list)


@dataclass
class Key:
    id: str
    region: str
    account: str
    spec: str
    usage: str
    created: float
    description: str = ""
    policy: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    multi_region: bool = False
    primary_region: str = ""
    creating_until: float = 0.0
    state: str = "Enabled"
    window: int = 30  # days
    deletion: float | None = None

    @property
    def arn(self) -> str:
        return f"arn:aws:kms:{self.region}:{self.account}:key/{self.id}"


@dataclass
class Alias:
    name: str
    region: str
    target: str
    created: float


class Store:
    """Thread-safe under ``lock``, which its users hold."""

    def __init__(self, path: Path | None) -> None:
        self.lock = threading.RLock()
        self.keys: dict[tuple[str, str], Key] = {}
        self.aliases: dict[tuple[str, str], Alias] = {}
        self._material: dict[str, tuple[keys.PrivateKey, bytes]] = {}
        self._offset = 0.0
        self._path = path
        self._foundry = keys.Foundry()
        if path is not None and path.exists():
            self._load(json.loads(path.read_text()))

    def now(self) -> float:
        return time.time() + self._offset

    def advance(self, seconds: float) -> None:
        self._offset += seconds
        self.save()

    def make_id(self, spec: str, multi_region: bool) -> str:
        """The id of a new key, with its material made."""
        name = f"mrk-{uuid.uuid4().hex}" if multi_region else str(uuid.uuid4())
        made = self._foundry.make(spec)
        if made is not None:
            self._material[name] = (made, keys.stored(made))
        return name

    def material(self, key: Key) -> keys.PrivateKey:
        return self._material[key.id][0]

    def state(self, key: Key) -> str:
        creating = key.state == "Enabled" and self.now() < key.creating_until
        return "Creating" if creating else key.state

    def relatives(self, key: Key) -> list[Key]:
        """Every Region's key with this id, the primary first."""
        family = [other for other in self.keys.values() if other.id == key.id]
        return sorted(
            family, key=lambda other: (other.region != other.primary_region, other.region)
        )

    def settle(self) -> None:
        """Make deletions whose window has passed final."""
        for key in [key for key in self.keys.values() if _is_due(key, self.now())]:
            self._remove(key)
        for key in self.keys.values():
            if key.state == "PendingReplicaDeletion" and len(self.relatives(key)) == 1:
                key.state, key.deletion = "PendingDeletion", self.now() + key.window * DAY
        self.save()

    def _remove(self, key: Key) -> None:
        del self.keys[key.region, key.id]
        for place, alias in list(self.aliases.items()):
            if (alias.region, alias.target) == (key.region, key.id):
                del self.aliases[place]
        if not self.relatives(key):
            self._material.pop(key.id, None)

    def has_due(self) -> bool:
        return any(_is_due(key, self.now()) for key in self.keys.values())

    def save(self) -> None:
        if self._path is None:
            return
        document = {
            "offset": self._offset,
            "keys": [asdict(key) for key in self.keys.values()],
            "aliases": [asdict(alias) for alias in self.aliases.values()],
            "material": {
                name: base64.b64encode(data).decode() for name, (_, data) in self._material.items()
            },
        }
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps(document))
        draft.replace(self._path)

    def _load(self, document: dict[str, Any]) -> None:
        self._offset = document["offset"]
        for item in document["keys"]:
            self.keys[item["region"], item["id"]] = Key(**item)
        for item in document["aliases"]:
            self.aliases[item["region"], item["name"]] = Alias(**item)
        for name, text in document["material"].items():
            data = base64.b64decode(text)
            self._material[name] = (keys.restored(data), data)


def _is_due(key: Key, now: float) -> bool:
    return key.state == "PendingDeletion" and key.deletion is not None and key.deletion <= now
