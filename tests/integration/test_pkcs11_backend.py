"""The PKCS#11 backend on real SoftHSM tokens that others meddle with.

Most tests run in a process of their own: a PKCS#11 module is global to a process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pkcs11 import ObjectClass, TokenFlag

from kmsjwks.backends.pkcs11.backend import Pkcs11Backend
from kmsjwks.backends.pkcs11.connection import Connector
from kmsjwks.backends.pkcs11.library import Libraries
from kmsjwks.backends.pkcs11.link import LinkHooks
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.errors import (
    BackendDenied,
    BackendError,
    BackendProtocolError,
    BackendUnavailable,
    KeyNotFound,
)
from kmsjwks.domain.ports import BackendKey
from kmsjwks.testing.verifiers import verifies
from tests.support.cryptoki import (
    Cryptoki,
    create_foreign_keys,
    destroy_objects,
    open_session,
    user_pin_flags,
)
from tests.support.processes import Herd, run_apart
from tests.support.softhsm import ROOT, Token, add_token, open_backend, provision, settings

ES256 = find_algorithm("ES256")
both_modes = pytest.mark.parametrize("inline", [False, True], ids=["threaded", "inline"])


def opened(
    token: Token, *, inline: bool, libraries: Libraries | None = None, **changes: Any
) -> Pkcs11Backend:
    return open_backend(
        token.options(**changes),
        token.directory / "state",
        libraries or Libraries(),
        LinkHooks() if inline else None,
    )


def signs(backend: Pkcs11Backend, key: BackendKey) -> bool:
    return verifies(key.alg, key.spki, b"message", backend.sign(key, b"message"))


class TestPin:
    @both_modes
    def test_a_wrong_pin_is_tried_exactly_once(self, own_token: Token, inline: bool) -> None:
        run_apart(_use_wrong_pin, own_token, inline)

    @pytest.mark.parametrize("flag", [TokenFlag.USER_PIN_LOCKED, TokenFlag.USER_PIN_FINAL_TRY])
    def test_the_last_try_is_not_used_up(self, flag: TokenFlag, tmp_path: Path) -> None:
        options = {"module_path": "m", "token_label": "t", "pin_command": ["/bin/echo", "1234"]}
        # It has no open(): whoever presented a PIN would fail otherwise than expected.
        token = SimpleNamespace(flags=flag | TokenFlag.LOGIN_REQUIRED, label="t")
        connect = Connector(settings(options, tmp_path), _LibrariesShowing(token))
        with pytest.raises(BackendDenied, match=r"locked|one PIN try left"):
            connect()

    def test_a_refused_pin_is_not_presented_by_other_processes(self, own_token: Token) -> None:
        right = own_token.pin_file.read_text()
        own_token.pin_file.write_text("not-the-pin")
        run_apart(_be_denied, own_token, "CKR_PIN_INCORRECT")
        run_apart(_be_denied, own_token, "refused this PIN before")
        own_token.pin_file.write_text("not-this-one-either")
        run_apart(_be_denied, own_token, "CKR_PIN_INCORRECT")
        own_token.pin_file.write_text(right)
        run_apart(_open, own_token)
        for path in (own_token.directory / "state").iterdir():
            assert "not-" not in path.read_text("latin-1")
            assert path.stat().st_mode & 0o077 == 0

    def test_a_missing_pin_is_denied(self, own_token: Token) -> None:
        run_apart(_use_without_pin, own_token)


class _LibrariesShowing(Libraries):
    """Libraries whose only module shows one token, which takes no login."""

    def __init__(self, token: Any) -> None:
        self._token = token

    def load(self, *_: Any) -> Any:
        return SimpleNamespace(
            opening=lambda _: nullcontext(), find_token=lambda *_: self._token, serial=None
        )


def _be_denied(token: Token, said: str) -> None:
    for _ in range(2):
        with pytest.raises(BackendDenied, match=said):
            opened(token, inline=False).check()
        said = "refused this PIN before"


def _open(token: Token) -> None:
    opened(token, inline=False).check()


def _use_wrong_pin(token: Token, inline: bool) -> None:
    counter = token.directory / "asked"
    command = ["/bin/sh", "-c", f"echo x >> {counter}; echo not-the-pin"]
    options = token.options(pin_command=command)
    del options["pin_file"]
    backend = open_backend(
        options, token.directory / "state", Libraries(), LinkHooks() if inline else None
    )

    def refused(_: int) -> str:
        with pytest.raises(BackendDenied) as caught:
            backend.sign(BackendKey("00" * 16, ES256, b""), b"message")
        return str(caught.value)

    with ThreadPoolExecutor(8) as pool:
        messages = set(pool.map(refused, range(40)))
    time.sleep(0.5)  # a keeper that tried again in the background would do so now
    for call in (backend.check, lambda: list(backend.list_keys()), lambda: backend.algorithms):
        with pytest.raises(BackendDenied):
            call()
    assert counter.read_text() == "x\n"
    assert len(messages) == 1
    assert "CKR_PIN_INCORRECT" in messages.pop()
    status = backend.status()
    assert not status.available
    assert "CKR_PIN_INCORRECT" in status.reason
    assert status.since is not None
    run_apart(_expect_flag, token, TokenFlag.USER_PIN_COUNT_LOW)
    backend.close()


def _expect_flag(token: Token, flag: TokenFlag) -> None:
    assert user_pin_flags(token) & flag


def _use_without_pin(token: Token) -> None:
    options = token.options()
    del options["pin_file"]
    backend = open_backend(options, token.directory / "state", Libraries())
    with pytest.raises(BackendDenied, match="pin_file"):
        backend.check()


class TestMissingParts:
    @both_modes
    def test_no_module(self, tmp_path: Path, inline: bool) -> None:
        for path in (str(tmp_path / "missing.so"), __file__):
            options = {"module_path": path, "token_label": "t"}
            backend = open_backend(options, tmp_path, Libraries(), LinkHooks() if inline else None)
            with pytest.raises(BackendUnavailable, match="module_path"):
                backend.check()
            assert not backend.status().available
            backend.close()

    def test_a_library_that_is_no_module(self, tmp_path: Path) -> None:
        options = {"module_path": "libc.so.6", "token_label": "t"}
        with pytest.raises(BackendUnavailable, match="module_path"):
            open_backend(options, tmp_path, Libraries()).check()

    def test_no_token_or_several(self, own_token: Token, tmp_path: Path) -> None:
        add_token(own_token, provision(tmp_path / "other"))
        run_apart(_choose_between_tokens, own_token)

    def test_a_failing_prepare_command(self, own_token: Token) -> None:
        backend = opened(own_token, inline=False, prepare_command=["/bin/false"])
        with pytest.raises(BackendUnavailable, match="/bin/false"):
            backend.check()
        backend.close()


def _choose_between_tokens(token: Token) -> None:
    libraries = Libraries()
    with pytest.raises(BackendUnavailable, match=r"2 tokens.*token_serial"):
        opened(token, inline=False, libraries=libraries).check()
    with pytest.raises(BackendUnavailable, match="no token with label 'other'"):
        opened(token, inline=False, libraries=libraries, token_label="other").check()
    library = libraries.load(token.module, "auto", None, {})
    serials = {found.serial.decode().strip() for found in library._lib.get_tokens()}
    opens = 0
    for serial in serials - {""}:
        backend = opened(token, inline=False, libraries=libraries, token_serial=serial)
        try:
            backend.check()
        except BackendDenied:  # the other token has another PIN
            continue
        opens += 1
        assert backend.describe()["token_serial"] == serial
    assert opens == 1


class TestKeysDeletedByOthers:
    @both_modes
    def test_both_halves(self, own_token: Token, inline: bool) -> None:
        run_apart(_lose_a_key, own_token, inline)

    @both_modes
    def test_one_half(self, own_token: Token, inline: bool) -> None:
        run_apart(_lose_half_a_key, own_token, inline)


def _lose_a_key(token: Token, inline: bool) -> None:
    backend = opened(token, inline=inline)
    key, other = (backend.create_key(ES256, request_id=name) for name in ("lost", "kept"))
    assert signs(backend, key)
    run_apart(destroy_objects, token, key.ref, (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY))
    for call in (
        lambda: backend.sign(key, b"message"),
        lambda: backend.get_key(key.ref),
        lambda: backend.evidence(key.ref),
    ):
        with pytest.raises(KeyNotFound):
            call()
    assert list(backend.list_keys()) == [other]
    assert signs(backend, other)
    assert backend.destroy_key(key.ref)
    again = backend.create_key(ES256, request_id="lost")
    assert again.ref == key.ref
    assert again.spki != key.spki
    assert signs(backend, again)
    with pytest.raises((KeyNotFound, AssertionError)):  # the old public key is not its own
        assert signs(backend, key)


def _lose_half_a_key(token: Token, inline: bool) -> None:
    backend = opened(token, inline=inline)
    for lost, kind in (("private", ObjectClass.PRIVATE_KEY), ("public", ObjectClass.PUBLIC_KEY)):
        key = backend.create_key(ES256, request_id=lost)
        run_apart(destroy_objects, token, key.ref, (kind,))
        assert key not in list(backend.list_keys())
        with pytest.raises((KeyNotFound, BackendProtocolError)):
            backend.get_key(key.ref)
        again = backend.create_key(ES256, request_id=lost)
        assert signs(backend, again)
        assert [listed for listed in backend.list_keys() if listed.ref == key.ref] == [again]


class TestForeignKeys:
    @both_modes
    def test_are_left_alone(self, own_token: Token, inline: bool) -> None:
        run_apart(_create_foreign_keys, own_token)
        run_apart(_meet_foreign_keys, own_token, inline)


def _create_foreign_keys(token: Token) -> None:
    session = open_session(token)
    create_foreign_keys(session, b"", b"\x01\x02")
    create_foreign_keys(session, b"\x03\x04", may_sign=False)


def _meet_foreign_keys(token: Token, inline: bool) -> None:
    backend = opened(token, inline=inline)
    assert list(backend.list_keys()) == []
    for ref in ("", "0102 ", "01 02", "0102".upper() + "AB"):
        with pytest.raises(KeyNotFound):
            backend.destroy_key(ref)
        with pytest.raises(KeyNotFound):
            backend.sign(BackendKey(ref, find_algorithm("RS256"), b""), b"message")
    assert backend.get_key("0102").alg == find_algorithm("RS256")
    with pytest.raises(BackendError):  # made without CKA_SIGN
        backend.sign(BackendKey("0304", find_algorithm("RS256"), b""), b"message")
    assert signs(backend, backend.create_key(ES256, request_id="ours"))


class TestRecovery:
    """From what other code in the same process did to the module."""

    @both_modes
    def test_at_rest(self, own_token: Token, inline: bool) -> None:
        run_apart(_recover_at_rest, own_token, inline)

    @both_modes
    def test_under_load(self, own_token: Token, inline: bool) -> None:
        """Only a logout: closing a session that signs crashes SoftHSM by itself."""
        run_apart(_recover_under_load, own_token, inline)

    @both_modes
    def test_two_backends_share_a_module(self, own_token: Token, inline: bool) -> None:
        run_apart(_share_a_module, own_token, inline)


def _recover_at_rest(token: Token, inline: bool) -> None:
    backend, module = opened(token, inline=inline), Cryptoki(token)
    for fault in (module.log_out, module.close_all_sessions, module.finalize):
        _recover_from(backend, fault)


def _recover_from(backend: Pkcs11Backend, fault: Callable[[], None]) -> None:
    key = backend.create_key(ES256, request_id="key")
    calls: list[Callable[[], Any]] = [
        lambda: signs(backend, key),
        lambda: backend.get_key(key.ref),
        lambda: list(backend.list_keys()),
        lambda: backend.evidence(key.ref),
        lambda: backend.create_key(ES256, request_id="key"),
        lambda: backend.create_key(ES256, request_id=f"another {time.monotonic()}"),
        backend.check,
        backend.describe,
    ]
    for call in calls:
        fault()
        call()
        assert signs(backend, key)
    assert backend.create_key(ES256, request_id="key") == key
    fault()
    backend.destroy_key(key.ref)
    with pytest.raises(KeyNotFound):
        backend.sign(key, b"message")


def _recover_under_load(token: Token, inline: bool) -> None:
    libraries, module = Libraries(), Cryptoki(token)
    backend = opened(token, inline=inline, libraries=libraries)
    key = backend.create_key(ES256, request_id="key")
    library = libraries.load(token.module, "auto", None, {})
    stop, done = threading.Event(), [0] * 8

    def sign(number: int) -> None:
        while not stop.is_set():
            assert signs(backend, key)  # no error at all: each call is tried again
            done[number] += 1

    def everybody_signs() -> None:
        goals, until = [count + 2 for count in done], time.monotonic() + 10
        while any(count < goal for count, goal in zip(done, goals, strict=True)):
            assert time.monotonic() < until
            assert not any(worker.done() and worker.result() for worker in workers)
            time.sleep(0.005)

    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(sign, number) for number in range(8)]
        try:
            for _ in range(10):
                everybody_signs()
                with library.opening(5):  # not while it is being finalised
                    module.log_out()
            everybody_signs()
        finally:
            stop.set()


def _share_a_module(token: Token, inline: bool) -> None:
    libraries, module = Libraries(), Cryptoki(token)
    one = opened(token, inline=inline, libraries=libraries)
    two = opened(token, inline=inline, libraries=libraries)
    key = one.create_key(ES256, request_id="key")
    assert two.create_key(ES256, request_id="key") == key
    for fault in (module.log_out, module.close_all_sessions, module.finalize):
        fault()
        deadline = time.monotonic() + 5
        while True:  # the other one is idle and does not notice
            try:
                assert signs(one, key)
                break
            except BackendUnavailable:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        deadline = time.monotonic() + 5
        while True:
            try:
                assert signs(two, key)
                break
            except BackendUnavailable:
                assert time.monotonic() < deadline
                time.sleep(0.02)
    one.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        one.sign(key, b"message")
    assert signs(two, key)


class TestProcesses:
    @both_modes
    def test_fork_after_use(self, own_token: Token, inline: bool) -> None:
        run_apart(_fork_after_use, own_token, inline)

    def test_nothing_is_loaded_before_first_use(self, own_token: Token) -> None:
        script = "\n".join(
            [
                "import threading",
                "from pathlib import Path",
                "from kmsjwks.backends.pkcs11.factory import Pkcs11Factory",
                "from kmsjwks.domain.ports import BackendContext, ServerHooks",
                "from tests.support.softhsm import Token",
                f"token = Token(Path({str(own_token.directory)!r}))",
                "factory = Pkcs11Factory()",
                "context = BackendContext(token.directory, token.directory / 'state', {})",
                "parsed = factory.parse('hsm', token.options(), context)",
                "hooks = ServerHooks(lambda thread: None, lambda: None)",
                "backends = [factory.open(parsed, given) for given in (None, hooks)]",
                "assert all(backend.status().available for backend in backends)",
                "def loaded(): return 'softhsm' in Path('/proc/self/maps').read_text()",
                "assert not loaded()",
                "assert threading.active_count() == 1",
                "assert not (token.directory / 'state').exists()",
                "backends[0].check()",
                "assert loaded()",
            ]
        )
        subprocess.run(
            [sys.executable, "-c", script],
            check=True,
            timeout=30,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )


def _fork_after_use(token: Token, inline: bool) -> None:
    backend = opened(token, inline=inline)
    key = backend.create_key(ES256, request_id="key")

    def sign_in_threads(*_: object) -> None:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda _: signs(backend, key), range(20)))

    sign_in_threads()
    for _ in range(3):
        _wait_for_ended_threads()
        herd = Herd(1, sign_in_threads)
        herd.go()
        assert herd.wait() == [0]
        assert signs(backend, key)


def _wait_for_ended_threads() -> None:
    """A joined thread may still be inside OpenSSL's thread clean-up, holding a lock that a forked
    child would never see released: forking then is safe for nobody."""
    until = time.monotonic() + 10
    while len(list(Path("/proc/self/task").iterdir())) > threading.active_count():
        assert time.monotonic() < until
        time.sleep(0.001)


class TestEvidence:
    def test_what_the_token_says(self, softhsm: Pkcs11Backend, softhsm_token: Token) -> None:
        for name in ("ES256", "RS256", "Ed25519"):
            key = softhsm.create_key(find_algorithm(name), request_id=f"evidence {name}")
            evidence = softhsm.evidence(key.ref)
            assert evidence.sound
            assert evidence.extraction_refused
            assert dict(evidence.attributes) == {
                "CKA_SENSITIVE": True,
                "CKA_EXTRACTABLE": False,
                "CKA_ALWAYS_SENSITIVE": True,
                "CKA_NEVER_EXTRACTABLE": True,
                "CKA_LOCAL": True,
                "CKA_PRIVATE": True,
                "CKA_KEY_GEN_MECHANISM": f"CKM_{key.alg.pkcs11_keygen}",
            }
            assert evidence.custody["token_label"] == softhsm_token.label
            assert evidence.custody["token_model"] == "SoftHSM v2"
            assert evidence.custody["token_serial"] == softhsm.describe()["token_serial"]
            assert evidence.custody["module"] == softhsm_token.module
            softhsm.destroy_key(key.ref)
