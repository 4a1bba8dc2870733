"""What `kmsjwks doctor` tries in AWS KMS: credentials, Regions, each permission, quotas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from kmsjwks.backends.awskms.arns import parse_key_arn
from kmsjwks.backends.awskms.failures import NotOffered
from kmsjwks.backends.awskms.inuse import try_used
from kmsjwks.backends.awskms.permissions import Scope, policy_for_missing, roles_needing
from kmsjwks.backends.awskms.regions import Regions
from kmsjwks.backends.awskms.settings import KmsSettings
from kmsjwks.backends.awskms.surroundings import NotTold, Surroundings, time_of
from kmsjwks.backends.awskms.trial import Attempt, Trial
from kmsjwks.domain.errors import (
    BackendError,
    BackendProtocolError,
    KeyNotFound,
)
from kmsjwks.domain.ports import BackendKey, Finding

_MOST_SKEW = 60.0  # seconds; AWS refuses requests at 300
_NO_ACCOUNT = "ACCOUNT"  # to be replaced by whoever pastes it
_SOON = 15 * 60.0  # seconds until credentials expire


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Identity:
    """Whose credentials these are; ``account`` is None where nothing says it."""

    account: str | None
    partition: str
    said: str


class Examination:
    """Makes one throw-away key in the home Region, tries everything with it, and schedules its
    deletion. KMS charges nothing for a key that is pending deletion."""

    def __init__(
        self,
        settings: KmsSettings,
        regions: Regions,
        *,
        surroundings: Surroundings | None = None,
        used: Sequence[BackendKey] = (),
        now: Callable[[], datetime] = _now,
    ) -> None:
        """``used``: keys that sign or stand by, tried beside the throw-away one."""
        self._settings, self._regions, self._now = settings, regions, now
        self._surroundings = surroundings or Surroundings(settings)
        self._trial, self._used = Trial(settings, regions), used

    def run(self) -> Iterator[Finding]:
        """Check by check; raises nothing. Stops after the first where going on is pointless."""
        identity: _Identity | None = None
        try:
            identity = self._identity()
        except BackendError as error:
            opened = self._without_sts(error)
        else:
            opened = Finding("open", True, f"AWS knows us as {identity.said}")
        yield opened
        if not opened.ok:
            return
        if identity is not None:
            yield self._account(identity.account)
        yield self._expiry()
        yield from self._permissions(identity)

    def _identity(self) -> _Identity:
        """
        Raises:
            BackendError: AWS STS does not answer, refuses us, or is something else.
        """
        caller = self._regions.caller()
        try:
            account, arn = str(caller["Account"]), str(caller["Arn"])
        except KeyError as error:
            raise BackendProtocolError("AWS STS did not say who we are.") from error
        partition = arn.split(":")[1] if arn.startswith("arn:") else "aws"
        return _Identity(account, partition, f"{arn}, account {account}")

    def _without_sts(self, trouble: BackendError) -> Finding:
        """An endpoint of AWS KMS may be all that is there: in a VPC, or of an emulator."""
        answers = [self._listing(region)[0] for region in self._settings.regions]
        if not any(answer.ok or answer.denied for answer in answers):
            told = dict.fromkeys((str(trouble), answers[0].said))
            return Finding("open", False, " ".join(told))
        return Finding("open", True, f"AWS KMS answers; who we are cannot be told: {trouble}")

    def _permissions(self, identity: _Identity | None) -> Iterator[Finding]:
        missing: list[str] = []
        used = try_used(self._settings, self._regions, self._used)
        for attempt in (*self._listings(), *used, *self._trial.run()):
            yield _as_finding(attempt)
            if attempt.denied is not None and attempt.denied not in missing:
                missing.append(attempt.denied)
        for region in self._settings.regions:
            yield self._quotas(region)
        if identity is None:
            identity = self._identity_of_keys()
            yield self._account(identity.account)
        if missing:
            yield _missing(missing, self._scope(identity))

    def _identity_of_keys(self) -> _Identity:
        """By the account that a key belongs to."""
        made = self._trial.made
        for arn in (str(made) if made else "", *(key.ref for key in self._used)):
            with suppress(KeyNotFound):
                parsed = parse_key_arn(arn)
                return _Identity(parsed.account, parsed.partition, arn)
        return _Identity(None, "aws", "")

    def _account(self, account: str | None) -> Finding:
        wanted = self._settings.account
        if account is None:
            return Finding("account", True, "cannot be told: neither AWS STS nor a key says it")
        if wanted is None:
            said = f'{account}; set account = "{account}" to refuse any other from now on'
            return Finding("account", True, said)
        wrong = (
            f"the credentials belong to {account}, and the backend is configured for {wanted}: "
            "use credentials of that account, or change account"
        )
        same = account == wanted
        return Finding("account", same, account if same else wrong)

    def _expiry(self) -> Finding:
        expires = self._surroundings.credentials_expire()
        if expires is None:
            told = "AWS does not say until when they hold; boto3 renews those of a role by itself"
            return Finding("credentials", True, told)
        left = (expires - self._now()).total_seconds()
        told = f"temporary, until {expires.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        if left > _SOON:
            return Finding("credentials", True, told)
        return Finding(
            "credentials",
            left > 0,
            f"{told}: that is soon. boto3 renews those of a role by itself; any others are yours "
            "to renew",
        )

    def _listings(self) -> Iterator[Attempt]:
        for region in self._settings.regions:
            yield from self._listing(region)
        yield self._aliases(self._settings.regions[0])

    def _aliases(self, region: str) -> Attempt:
        """Our keys are found by their aliases, in the home Region."""
        try:
            self._regions.call("ListAliases", {"Limit": 1}, doing="listing aliases", region=region)
        except NotOffered:
            told = "not offered by this endpoint; keys are found by their tags alone"
            return Attempt("kms:ListAliases", region, True, told)
        except BackendError as error:
            return Attempt.failed("kms:ListAliases", region, error)
        return Attempt("kms:ListAliases", region, True, "allowed")

    def _listing(self, region: str) -> list[Attempt]:
        try:
            answer = self._regions.call(
                "ListKeys", {"Limit": 1}, doing="listing keys", region=region
            )
        except BackendError as error:
            return [Attempt.failed("kms:ListKeys", region, error)]
        allowed = Attempt("kms:ListKeys", region, True, "allowed")
        return [allowed, self._clock(region, time_of(answer))]

    def _clock(self, region: str, theirs: datetime | None) -> Attempt:
        if theirs is None:
            return Attempt("clock", region, True, "the answer has no date to compare with")
        skew = (self._now() - theirs).total_seconds()
        ahead = "ahead of" if skew > 0 else "behind"
        told = f"{abs(skew):.0f} s {ahead} AWS's"
        if abs(skew) <= _MOST_SKEW:
            return Attempt("clock", region, True, told)
        told += ": set it right. Tokens carry its time, and AWS refuses requests at 5 minutes"
        return Attempt("clock", region, False, told)

    def _quotas(self, region: str) -> Finding:
        check, limit = f"quotas {region}", self._settings.requests_per_second
        ours = f"each machine stops itself at {limit:g} (requests_per_second)"
        try:
            quotas = self._surroundings.signing_quotas(region)
        except NotTold as error:
            return Finding(
                check,
                True,
                f"cannot be read ({error}; it takes servicequotas:ListServiceQuotas); {ours}",
            )
        told = ", ".join(f"{name} {value:g}/s" for name, value in sorted(quotas.items()))
        below = limit < min(quotas.values())
        advice = (
            "divide the quota by the number of machines"
            if below
            else "that is not below every quota: AWS throttles first. Lower it, or raise the quota"
        )
        return Finding(check, below, f"{told}; {ours}: {advice}")

    def _scope(self, identity: _Identity) -> Scope:
        settings = self._settings
        return Scope(
            account=identity.account or settings.account or _NO_ACCOUNT,
            regions=settings.regions,
            installation=settings.installation,
            multi_region=settings.multi_region,
            deletion_window_days=settings.deletion_window_days,
            partition=identity.partition,
        )


def _as_finding(attempt: Attempt) -> Finding:
    return Finding(f"{attempt.what} {attempt.region}", attempt.ok, attempt.said)


def _missing(actions: list[str], scope: Scope) -> Finding:
    lines = [
        f"{action} (role: {', '.join(roles_needing(action, scope)) or 'none'})"
        for action in actions
    ]
    return Finding(
        "permissions",
        False,
        f"denied: {'; '.join(lines)}. What no role of this process's needs may stay denied "
        '(docs/aws-kms.md, "Which process needs which role"). A key\'s tags take up to five '
        "minutes to count: if the policy is in place already, try again then. To allow them:\n"
        + policy_for_missing(actions, scope),
    )
