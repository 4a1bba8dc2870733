"""An error as AWS KMS sends it: ``__type``, ``message`` and a status."""

from __future__ import annotations


class AwsError(Exception):
    """``code`` is the exception's name in the API reference, ``status`` the HTTP status."""

    def __init__(self, code: str, message: str = "", status: int = 400) -> None:
        super().__init__(code, message, status)
        self.code, self.message, self.status = code, message, status


def validation(message: str) -> AwsError:
    return AwsError("ValidationException", message)


def constraint(value: str, member: str, rule: str) -> AwsError:
    """A constraint of the service model that a request breaks, in AWS's words."""
    return validation(
        f"1 validation error detected: Value {value} at '{member}' failed to satisfy constraint: "
        f"{rule}"
    )


def not_authorized(user: str, action: str, resource: str | None) -> AwsError:
    where = f" on resource: {resource}" if resource else ""
    return AwsError(
        "AccessDeniedException",
        f"User: {user} is not authorized to perform: {action}{where} because no identity-based "
        f"policy allows the {action} action",
    )
