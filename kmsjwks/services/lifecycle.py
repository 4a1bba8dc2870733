"""Creating keysets: intent, key in the backend, row in the store."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kmsjwks.domain.algorithms import Algorithm
from kmsjwks.domain.errors import (
    BackendError,
    Conflict,
    InvalidRequest,
    KeyNotFound,
    UnsupportedAlgorithm,
)
from kmsjwks.domain.jwk import key_id
from kmsjwks.domain.keys import Key, Keyset, KeyState, KeyTimes, check_keyset_name
from kmsjwks.domain.ports import BackendKey, Clock, KeyBackend, KeyStore
from kmsjwks.domain.signatures import make_verifier
from kmsjwks.domain.tokens import TokenRules, check_rules
from kmsjwks.services.publication import issuer_path

_log = logging.getLogger(__name__)


class KeysetService:
    def __init__(self, store: KeyStore, backends: Mapping[str, KeyBackend], clock: Clock) -> None:
        self._store, self._backends, self._clock = store, backends, clock

    def create(self, name: str, algorithm: Algorithm, backend: str, rules: TokenRules) -> Keyset:
        """A keyset with its first key, active at once: no verifier waits for a first key.

        Raises:
            InvalidRequest: the name, the rules or the backend's name.
            Conflict: the keyset exists, or its issuer cannot be shared.
            BackendError, StoreUnavailable.
        """
        check_keyset_name(name)
        check_rules(rules)
        if backend not in self._backends:
            raise InvalidRequest(
                f"There is no backend {backend!r}. Configured: {', '.join(sorted(self._backends))}."
            )
        existing = self._refuse_existing(name)
        keyset = Keyset(name, algorithm, backend, rules, int(self._clock.now()))
        check_issuer(keyset, existing)
        self._create(keyset)
        return keyset

    def ensure(self, name: str, algorithm: Algorithm, backend: str, rules: TokenRules) -> Keyset:
        """Create it, or bring an existing one's token rules in line.

        Raises:
            Conflict: it exists with another algorithm or backend.
        """
        existing = {keyset.name: keyset for keyset in self._store.keysets()}
        found = existing.pop(name, None)
        if found is None:
            return self.create(name, algorithm, backend, rules)
        if (found.algorithm, found.backend) != (algorithm, backend):
            raise Conflict(
                f"The keyset {name} exists with {found.algorithm.id} in the backend "
                f"{found.backend}; these cannot be changed."
            )
        check_rules(rules)
        wanted = replace(found, rules=rules)
        if wanted != found:
            check_issuer(wanted, list(existing.values()))
            self._store.update_rules(name, rules)
        return wanted

    def _create(self, keyset: Keyset) -> None:
        backend, algorithm = self._backends[keyset.backend], keyset.algorithm
        offered = backend.algorithms
        if algorithm not in offered:
            raise UnsupportedAlgorithm(
                f"The backend {keyset.backend} does not offer {algorithm.id}. It offers: "
                f"{', '.join(sorted(one.id for one in offered))}."
            )
        request_id = self._request_id(keyset)
        self._store.begin_creation(
            request_id, keyset.name, keyset.backend, algorithm, keyset.created_at
        )
        made = backend.create_key(algorithm, request_id=request_id)
        try:
            _prove(backend, made)
            self._store.add_keyset(keyset, _first_key(keyset, made), request_id=request_id)
        except KeyNotFound:  # destroyed by another process that went on with the same creation?
            self._refuse_existing(keyset.name)
            raise
        except (Conflict, UnsupportedAlgorithm):
            self._discard(keyset, made)
            raise
        _log.info("Keyset %s created with %s key %s.", keyset.name, algorithm.id, made.ref)

    def _refuse_existing(self, name: str) -> Sequence[Keyset]:
        """All keysets, none of which has this name.

        Raises:
            Conflict
        """
        existing = self._store.keysets()
        if any(keyset.name == name for keyset in existing):
            raise Conflict(f"The keyset {name} exists already.")
        return existing

    def _discard(self, keyset: Keyset, made: BackendKey) -> None:
        """Destroy a key that became nobody's: another process was first, or it cannot sign. One
        that the winner has (both went on with the same creation) stays."""
        if any((k.backend, k.ref) == (keyset.backend, made.ref) for k in list(self._store.keys())):
            return
        try:
            self._backends[keyset.backend].destroy_key(made.ref)
        except BackendError as error:
            _log.error("The unused key %s is left in %s: %s", made.ref, keyset.backend, error)

    def _request_id(self, keyset: Keyset) -> str:
        """That of a creation which a crash left unfinished, so that its key is used, not lost."""
        wanted = (keyset.name, keyset.backend, keyset.algorithm)
        for request_id, *rest, _ in self._store.open_intents():
            if tuple(rest) == wanted:
                return request_id
        return uuid.uuid4().hex


def check_issuer(keyset: Keyset, others: Sequence[Keyset]) -> None:
    """One path, one issuer; and no algorithm that breaks clients in a document shared by others.

    Raises:
        Conflict: says which keyset is in the way and what to choose instead.
    """
    path = issuer_path(keyset.rules.issuer)
    for other in others:
        if issuer_path(other.rules.issuer) != path:
            continue
        if other.rules.issuer != keyset.rules.issuer:
            raise Conflict(
                f"The issuer {other.rules.issuer} of keyset {other.name} has the same path and so "
                "the same JWKS address. Give this issuer a path of its own."
            )
        if other.algorithm.breaks_clients or keyset.algorithm.breaks_clients:
            breaking = keyset if keyset.algorithm.breaks_clients else other
            raise Conflict(
                f"{breaking.algorithm.id} makes widespread clients reject a whole JWKS, so keyset "
                f"{breaking.name} cannot share the issuer {other.rules.issuer}. "
                f"Choose one of its own, such as {other.rules.issuer}/{keyset.name}."
            )


def _prove(backend: KeyBackend, made: BackendKey) -> None:
    """A key that cannot sign must not become anybody's signing key.

    Raises:
        BackendError
    """
    message = b"kmsjwks proof of possession"
    if not make_verifier(made.alg, made.spki)(message, backend.sign(made, message)):
        raise UnsupportedAlgorithm(
            f"The backend made a {made.alg.id} key whose signatures do not verify. "
            "Run 'kmsjwks doctor'."
        )


def _first_key(keyset: Keyset, made: BackendKey) -> Key:
    now = keyset.created_at
    return Key(
        kid=key_id(made.spki, made.alg),
        keyset=keyset.name,
        algorithm=made.alg,
        backend=keyset.backend,
        ref=made.ref,
        spki=made.spki,
        state=KeyState.ACTIVE,
        times=KeyTimes(created_at=now, published_at=now, activate_at=now),
    )
