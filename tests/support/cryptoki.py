"""The module as another user of it sees it: raw PKCS#11 behind a backend's back."""

from __future__ import annotations

import ctypes
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11.mechanisms import Mechanism

from kmsjwks.backends.pkcs11.library import Libraries
from tests.support.softhsm import Token

_CKF_SERIAL_SESSION = 4


class Cryptoki:
    """C functions of a module that this process has loaded and initialised already."""

    def __init__(self, token: Token) -> None:
        self._functions = ctypes.CDLL(token.module)

    def _call(self, name: str, *arguments: Any) -> None:
        rv = getattr(self._functions, name)(*arguments)
        assert rv == 0, f"{name}: CKR 0x{rv:X}"

    def _slot(self) -> ctypes.c_ulong:
        """The first one: the token's, the second one is SoftHSM's empty slot."""
        slots, count = (ctypes.c_ulong * 16)(), ctypes.c_ulong(16)
        self._call("C_GetSlotList", ctypes.c_ubyte(1), slots, ctypes.byref(count))
        return ctypes.c_ulong(slots[0])

    def log_out(self) -> None:
        session, flags = ctypes.c_ulong(), ctypes.c_ulong(_CKF_SERIAL_SESSION)
        self._call("C_OpenSession", self._slot(), flags, None, None, ctypes.byref(session))
        self._call("C_Logout", session)
        self._call("C_CloseSession", session)

    def close_all_sessions(self) -> None:
        self._call("C_CloseAllSessions", self._slot())

    def finalize(self) -> None:
        self._call("C_Finalize", None)


def open_session(token: Token) -> Any:
    """A session of python-pkcs11, logged in. Not in a process that a backend is used in."""
    options = token.options()
    library = Libraries().load(token.module, "locking", None, options["environment"])
    found = library.find_token(options["token_label"], None)
    return found.open(rw=True, user_pin=token.pin_file.read_text().strip())


def destroy_objects(token: Token, ref: str, kinds: tuple[ObjectClass, ...]) -> None:
    """Delete objects by CKA_ID, as an administrator's tool does."""
    session = open_session(token)
    for kind in kinds:
        wanted = {Attribute.CLASS: kind, Attribute.ID: bytes.fromhex(ref)}
        for found in list(session.get_objects(wanted)):
            found.destroy()


def create_foreign_keys(session: Any, *key_ids: bytes, may_sign: bool = True) -> None:
    """RSA keys that are not ours, by label."""
    for key_id in key_ids:
        session.generate_keypair(
            KeyType.RSA,
            2048,
            id=key_id,
            label="somebody else's",
            store=True,
            capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
            mechanism=Mechanism.RSA_PKCS_KEY_PAIR_GEN,
            private_template={Attribute.SIGN: may_sign},
        )


def user_pin_flags(token: Token) -> pkcs11.TokenFlag:
    options = token.options()
    library = Libraries().load(token.module, "locking", None, options["environment"])
    return library.find_token(options["token_label"], None).flags
