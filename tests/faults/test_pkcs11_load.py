"""The PKCS#11 backend under threads and with many processes starting at once."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kmsjwks.backends.pkcs11.backend import Pkcs11Backend
from kmsjwks.backends.pkcs11.library import Libraries
from kmsjwks.backends.pkcs11.link import LinkHooks
from kmsjwks.domain.algorithms import ALGORITHMS, DEFAULT_RSA_BITS, find_algorithm
from kmsjwks.domain.ports import BackendKey
from kmsjwks.domain.signatures import make_verifier
from kmsjwks.testing.verifiers import verifies
from tests.support.processes import Herd, run_apart
from tests.support.softhsm import ROOT, Token, open_backend

SOAK_FACTOR = int(os.environ.get("SOAK_FACTOR", "1"))
THREADS = 16
SIGNATURES = 1_000  # of each algorithm
PROCESSES = 10
ROUNDS = 4
ES256 = find_algorithm("ES256")


def inline_backend(token: Token, **changes: object) -> Pkcs11Backend:
    """As the server opens it."""
    options = token.options(**changes)
    return open_backend(options, token.directory / "state", Libraries(), LinkHooks())


class TestThreads:
    def test_every_algorithm_at_once(self, own_token: Token) -> None:
        run_apart(_sign_everything, own_token, SOAK_FACTOR, timeout=120 * SOAK_FACTOR)


def _sign_everything(token: Token, factor: int) -> None:
    backend = inline_backend(token, sessions=THREADS)
    offered = [a for a in ALGORITHMS if a.pkcs11_mechanism]
    algorithms = [a for a in offered if a.kty != "RSA" or a.key_bits == DEFAULT_RSA_BITS]
    assert set(algorithms) <= backend.algorithms
    keys = [backend.create_key(alg, request_id=alg.id) for alg in algorithms]
    verifiers = [make_verifier(key.alg, key.spki) for key in keys]
    turns = itertools.count()  # next() is one step under the GIL
    signed: list[Counter[str]] = []
    errors: list[BaseException] = []

    def work() -> None:
        mine: Counter[str] = Counter()
        try:
            while (turn := next(turns)) < SIGNATURES * factor * len(keys):
                which = turn % len(keys)
                message = turn.to_bytes(8, "big") * 16
                signature = backend.sign(keys[which], message)
                assert verifiers[which](message, signature), keys[which].alg
                mine[keys[which].alg.id] += 1
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            signed.append(mine)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    total = sum(signed, Counter[str]())
    assert total == {alg.id: SIGNATURES * factor for alg in algorithms}
    backend.close()


class TestProcesses:
    def test_ten_at_once(self, own_token: Token) -> None:
        run_apart(_start_herds, own_token, timeout=60 * SOAK_FACTOR)

    def test_one_killed_while_starting(self, own_token: Token) -> None:
        run_apart(_start_herds_and_kill, own_token, timeout=60 * SOAK_FACTOR)

    def test_a_truncated_token_file_is_healed(self, own_token: Token) -> None:
        run_apart(_start_on_truncated_file, own_token)


def _token_object(token: Token) -> Path:
    (found,) = token.directory.glob("tokens/*/token.object")
    return found


def _heal(token: Token) -> list[str]:
    return [str(ROOT / "softhsm" / "provision.sh"), "--heal", str(token.directory)]


def _use(token: Token, number: int, **changes: object) -> None:
    """What a worker does first: open the token, find the shared key, sign. And make a key."""
    backend = inline_backend(token, **changes)
    shared = backend.create_key(ES256, request_id="shared")
    for key in (shared, backend.create_key(ES256, request_id=f"of {number}")):
        assert _signs(backend, key)


def _signs(backend: Pkcs11Backend, key: BackendKey) -> bool:
    return verifies(key.alg, key.spki, b"message", backend.sign(key, b"message"))


def _herd(use: Callable[[int], None]) -> list[int]:
    herd = Herd(PROCESSES, use)
    herd.go()
    return herd.wait()


def _start_herds(token: Token) -> None:
    size = _token_object(token).stat().st_size
    for _ in range(ROUNDS * SOAK_FACTOR):
        assert _herd(partial(_use, token)) == [0] * PROCESSES
        assert _token_object(token).stat().st_size == size
    healed = subprocess.run(_heal(token), check=True, capture_output=True)
    assert healed.stderr == b""
    backend = inline_backend(token)
    expected = {"shared", *(f"of {number}" for number in range(PROCESSES))}
    keys = {backend.create_key(ES256, request_id=name) for name in expected}
    assert set(backend.list_keys()) == keys


def _start_herds_and_kill(token: Token) -> None:
    use = partial(_use, token, prepare_command=_heal(token))
    for turn in range(2 * ROUNDS * SOAK_FACTOR):
        herd = Herd(PROCESSES, use)
        herd.go()
        victim = random.randrange(PROCESSES)
        time.sleep(random.uniform(0, 0.25))
        herd.kill(victim)
        codes = herd.wait()
        codes[victim] = 0
        assert codes == [0] * PROCESSES, f"round {turn}, {victim} killed"
    use(0)


def _start_on_truncated_file(token: Token) -> None:
    path = _token_object(token)
    size = path.stat().st_size
    for length in (0, 1, size - 1):
        path.chmod(0o600)
        os.truncate(path, length)
        assert _herd(partial(_use, token, prepare_command=_heal(token))) == [0] * PROCESSES
        assert path.stat().st_size == size
