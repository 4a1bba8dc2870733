"""Logging in, once: a PIN is never presented again after it was refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from pkcs11 import PROTECTED_AUTH, Session, TokenFlag
from pkcs11.exceptions import UserAlreadyLoggedIn
from pkcs11.types import Token

from kmsjwks.backends.pkcs11.failures import (
    Remedy,
    VendorError,
    describe,
    is_refusal,
    remedy,
    translate,
)
from kmsjwks.backends.pkcs11.refused import RefusedPin
from kmsjwks.domain.errors import BackendDenied, BackendUnavailable

_UNCLEAR_PAUSE = 60.0  # seconds before a login is tried again that failed for no clear reason


def login(token: Token, read_pin: Callable[[], str] | None, refused: RefusedPin) -> Session:
    """A session that is logged in, to be kept open as long as others are used.

    Raises:
        BackendDenied: refused now or before, or one try is left.
        BackendUnavailable: failed for another reason.
        PKCS11Error: the connection to the token broke.
    """
    _refuse_last_try(token)
    # Opened first and by itself, so that what fails afterwards is the login.
    session = token.open()
    if read_pin is not None:
        return _with_pin(token, session, read_pin(), refused)
    if token.flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH:
        return _present(token, session, PROTECTED_AUTH)
    if token.flags & TokenFlag.LOGIN_REQUIRED:
        raise BackendDenied(
            f"The token {token.label!r} requires a login; set pin_file, pin_env_file or "
            "pin_command."
        )
    return session


def _with_pin(token: Token, session: Session, pin: str, refused: RefusedPin) -> Session:
    serial = token.serial.decode("ascii", "replace")
    if refused.matches(serial, pin):
        session.close()
        raise BackendDenied(
            f"The token {token.label!r} refused this PIN before; it is not presented again. Put "
            f"the right PIN in place, or remove {refused.path} if the token takes this one now."
        )
    try:
        logged_in = _present(token, session, pin)
    except VendorError as error:
        if is_refusal(error):
            with suppress(OSError):
                refused.remember(serial, pin)
            raise translate(error, "logging in") from error
        raise
    refused.forget()
    return logged_in


def _present(token: Token, session: Session, pin: object) -> Session:
    try:
        logged_in = token.open(user_pin=pin)
    except UserAlreadyLoggedIn:
        return session
    except VendorError as error:
        with suppress(VendorError):
            session.close()
        if is_refusal(error) or remedy(error) is Remedy.RECONNECT:
            raise
        # Some modules report a wrong PIN with a general error; so this is not hurried.
        raise BackendUnavailable(
            f"The login at the token {token.label!r} failed ({describe(error)}).",
            retry_after=_UNCLEAR_PAUSE,
        ) from error
    session.close()
    return logged_in


def _refuse_last_try(token: Token) -> None:
    if token.flags & TokenFlag.USER_PIN_LOCKED:
        raise BackendDenied(f"The user PIN of the token {token.label!r} is locked.")
    if token.flags & TokenFlag.USER_PIN_FINAL_TRY:
        raise BackendDenied(
            f"The token {token.label!r} has one PIN try left; it is not used up here. Log in once "
            "by hand with the right PIN, then restart."
        )
