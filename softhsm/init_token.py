"""Initialise one SoftHSM token without ever putting a PIN on a command line.

``softhsm2-util --init-token`` takes PINs as arguments, which every user of the machine can read
in the process list, or from a terminal. This calls the module directly (PKCS#11 v2.40, 5.5 and
5.6) and reads the PINs from files. Standard library only: it runs before any package is installed.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

CKF_RW_SESSION = 0x2
CKF_SERIAL_SESSION = 0x4
CKU_SO = 0
LABEL_BYTES = 32


class ModuleRefused(Exception):
    """A PKCS#11 call returned something other than CKR_OK."""


def _caller(module: ctypes.CDLL) -> Callable[..., None]:
    def call(name: str, *arguments: object) -> None:
        function = getattr(module, name)
        function.restype = ctypes.c_ulong
        code = function(*arguments)
        if code != 0:
            raise ModuleRefused(f"{name} returned CKR 0x{code:08x}")

    return call


def _first_slot(call: Callable[..., None]) -> ctypes.c_ulong:
    """The slot of the only token there is: SoftHSM offers one uninitialised token."""
    count = ctypes.c_ulong()
    call("C_GetSlotList", ctypes.c_ubyte(1), None, ctypes.byref(count))
    if count.value != 1:
        raise ModuleRefused(f"expected one uninitialised token, the module offers {count.value}")
    slots = (ctypes.c_ulong * 1)()
    call("C_GetSlotList", ctypes.c_ubyte(1), slots, ctypes.byref(count))
    return ctypes.c_ulong(slots[0])


def initialise(module_path: str, label: str, so_pin: bytes, user_pin: bytes) -> None:
    """Initialise the module's free token as ``label`` and set its user PIN.

    Raises ModuleRefused when a call fails and OSError when the module cannot be loaded.
    """
    padded = label.encode().ljust(LABEL_BYTES)
    if len(padded) > LABEL_BYTES:
        raise ModuleRefused(f"the label {label!r} is longer than {LABEL_BYTES} bytes")
    call = _caller(ctypes.CDLL(module_path))
    call("C_Initialize", None)
    try:
        slot = _first_slot(call)
        so_length = ctypes.c_ulong(len(so_pin))
        call("C_InitToken", slot, so_pin, so_length, padded)
        session = ctypes.c_ulong()
        flags = ctypes.c_ulong(CKF_RW_SESSION | CKF_SERIAL_SESSION)
        call("C_OpenSession", slot, flags, None, None, ctypes.byref(session))
        call("C_Login", session, ctypes.c_ulong(CKU_SO), so_pin, so_length)
        call("C_InitPIN", session, user_pin, ctypes.c_ulong(len(user_pin)))
        call("C_CloseSession", session)
    finally:
        call("C_Finalize", None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module_path")
    parser.add_argument("label")
    parser.add_argument("so_pin_file", type=Path)
    parser.add_argument("user_pin_file", type=Path)
    arguments = parser.parse_args()
    try:
        initialise(
            arguments.module_path,
            arguments.label,
            arguments.so_pin_file.read_bytes().strip(),
            arguments.user_pin_file.read_bytes().strip(),
        )
    except (ModuleRefused, OSError) as error:
        print(f"init_token: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
