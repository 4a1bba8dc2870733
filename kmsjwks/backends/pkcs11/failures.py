"""Vendor exceptions -> what they mean for us."""

from __future__ import annotations

from enum import Enum

from pkcs11 import exceptions as p11

from kmsjwks.domain.errors import (
    BackendDenied,
    BackendError,
    BackendProtocolError,
    BackendUnavailable,
    UnsupportedAlgorithm,
)

VendorError = p11.PKCS11Error


class Remedy(Enum):
    """What has to happen before the same call can succeed."""

    LOOK_UP_AGAIN = "look up the object again"
    NEW_SESSION = "open another session"
    RECONNECT = "initialise and log in again"
    NONE = "nothing we can do"


_STALE_HANDLE = (p11.ObjectHandleInvalid, p11.KeyHandleInvalid)
_SESSION = (
    p11.FunctionFailed,
    p11.GeneralError,
    p11.OperationActive,
    p11.OperationNotInitialized,
    p11.FunctionCancelled,
    p11.HostMemory,
)
_CONNECTION = (
    p11.SessionHandleInvalid,
    p11.SessionClosed,
    p11.DeviceError,
    p11.DeviceMemory,
    p11.DeviceRemoved,
    p11.TokenNotPresent,
    p11.TokenNotRecognised,
    p11.SlotIDInvalid,
    p11.NoSuchToken,
    p11.UserNotLoggedIn,
)
_DENIED = (
    p11.PinIncorrect,
    p11.PinInvalid,
    p11.PinLenRange,
    p11.PinExpired,
    p11.PinLocked,
    p11.UserPinNotInitialized,
    p11.AnotherUserAlreadyLoggedIn,
    p11.UserTooManyTypes,
    p11.FunctionRejected,
    p11.TokenWriteProtected,
)
_UNSUPPORTED = (
    p11.MechanismInvalid,
    p11.MechanismParamInvalid,
    p11.DomainParamsInvalid,
    p11.FunctionNotSupported,
    p11.KeySizeRange,
    p11.KeyTypeInconsistent,
    p11.TemplateInconsistent,
    p11.AttributeValueInvalid,
)


def is_refusal(error: VendorError) -> bool:
    """The token said no, and means it: asking again costs one of the PIN's tries."""
    return isinstance(error, _DENIED)


def not_initialised(error: VendorError) -> bool:
    """CKR_CRYPTOKI_NOT_INITIALIZED, which python-pkcs11 gives no class of its own."""
    return "not initialized" in str(error) and "Initialisation" in str(error)


def remedy(error: VendorError) -> Remedy:
    if isinstance(error, _STALE_HANDLE):
        return Remedy.LOOK_UP_AGAIN
    if isinstance(error, _CONNECTION) or not_initialised(error):
        return Remedy.RECONNECT
    if isinstance(error, _SESSION):
        return Remedy.NEW_SESSION
    return Remedy.NONE


def describe(error: VendorError) -> str:
    """The CKR name, as an HSM administrator knows it; never an argument or a value."""
    name = type(error).__name__
    if name == "PKCS11Error":
        return str(error)[:80] or "unknown PKCS#11 error"
    words = "".join("_" + c if c.isupper() and i else c for i, c in enumerate(name))
    return f"CKR_{words.upper()}".replace("P_I_N", "PIN").replace("I_D_", "ID_")


def translate(error: VendorError, doing: str) -> BackendError:
    """The typed error for a vendor exception met while ``doing`` something (present participle)."""
    said = describe(error)
    if isinstance(error, _DENIED):
        return BackendDenied(f"The token refused {doing} ({said}). It is not tried again.")
    if isinstance(error, _UNSUPPORTED):
        return UnsupportedAlgorithm(f"The token does not support {doing} ({said}).")
    if remedy(error) is not Remedy.NONE or isinstance(error, p11.SessionCount):
        return BackendUnavailable(f"The token failed while {doing} ({said}).")
    return BackendProtocolError(f"The token answered unexpectedly while {doing} ({said}).")
