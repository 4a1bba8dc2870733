"""What `kmsjwks doctor` tries in AWS KMS: credentials, Regions, each permission, quotas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from kmsjwks.backends.awskms.permissions import Scope, policy_for_missing, roles_needing
from kmsjwks.backends.awskms.regions import Regions
from kmsjwks.backends.awskms.settings import KmsSettings
from kmsjwks.backends.awskms.surroundings import NotTold, Surroundings, time_of
from kmsjwks.backends.awskms.trial import Attempt, Trial
from kmsjwks.domain.errors import BackendError
from kmsjwks.domain.ports import Finding

_MOST_SKEW = 60.0  # seconds; AWS refuses requests at 300
_SOON = 15 * 60.0  # seconds until credentials expire


def _now() -> datetime:
    return datetime.now(UTC)


class Examination:
    """Makes one throw-away key in the home Region, tries everything with it, and schedules its
    deletion. KMS charges nothing for a key that is pending deletion."""

    def __init__(
        self,
        settings: KmsSettings,
        regions: Regions,
        *,
        surroundings: Surroundings | None = None,
        trial: Trial | None = None,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._settings, self._regions, self._now = settings, regions, now
        self._surroundings = surroundings or Surroundings(settings)
        self._trial = trial or Trial(settings, regions)

    def run(self) -> Iterator[Finding]:
        """Check by check; raises nothing. Stops after the first where going on is pointless."""
        try:
            caller = self._regions.caller()
            account, arn = str(caller["Account"]), str(caller["Arn"])
        except (BackendError, KeyError) as error:
            yield Finding("open", False, str(error) or "AWS STS did not say who we are.")
            return
        yield Finding("open", True, f"AWS knows us as {arn}, account {account}")
        yield from self._account(account)
        yield self._expiry()
        missing: list[str] = []
        for attempt in (*self._listings(), *self._trial.run()):
            yield _as_finding(attempt)
            if attempt.denied is not None and attempt.denied not in missing:
                missing.append(attempt.denied)
        for region in self._settings.regions:
            yield self._quotas(region)
        if missing:
            yield _missing(missing, self._scope(account, arn))

    def _account(self, account: str) -> Iterator[Finding]:
        wanted = self._settings.account
        if wanted is None:
            said = f'{account}; set account = "{account}" to refuse any other from now on'
            yield Finding("account", True, said)
            return
        wrong = (
            f"the credentials belong to {account}, and the backend is configured for {wanted}: "
            "use credentials of that account, or change account"
        )
        same = account == wanted
        yield Finding("account", same, account if same else wrong)

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
            try:
                answer = self._regions.call(
                    "ListKeys", {"Limit": 1}, doing="listing keys", region=region
                )
            except BackendError as error:
                yield Attempt.failed("kms:ListKeys", region, error)
                continue
            yield Attempt("kms:ListKeys", region, True, "allowed")
            yield self._clock(region, time_of(answer))

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

    def _scope(self, account: str, arn: str) -> Scope:
        settings = self._settings
        return Scope(
            account=account,
            regions=settings.regions,
            installation=settings.installation,
            multi_region=settings.multi_region,
            deletion_window_days=settings.deletion_window_days,
            partition=arn.split(":")[1] if arn.startswith("arn:") else "aws",
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
