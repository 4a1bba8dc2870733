"""What happens to the backends during the failover proof, act by act."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from proof.failover_cluster import Custody, FailoverCluster
from proof.failover_plan import CLOUD, DEMO, PRIMARY, STANDBY, Break, FailoverPlan
from proof.failover_record import Story, Unmet
from proof.record import Record
from proof.replicas import KeyFacts

STEADY, PRIMARY_DOWN, PRIMARY_BACK, FLAPPING, CUT_OFF, MIGRATION, REMOVED = (
    "steady", "primary down", "primary back", "flapping", "standby cut off", "migration",
    "primary removed",
)  # fmt: skip
PHASES = (STEADY, PRIMARY_DOWN, PRIMARY_BACK, FLAPPING, CUT_OFF, MIGRATION, REMOVED)
_LOOK = 0.1  # seconds between two looks at what is waited for
_GOES_ON = 3  # tokens


class Scenario:
    """One run; what it waits for in vain is remembered, and ends it."""

    def __init__(
        self,
        cluster: FailoverCluster,
        custody: Custody,
        plan: FailoverPlan,
        record: Record,
        story: Story,
    ) -> None:
        self._cluster, self._custody, self._plan = cluster, custody, plan
        self._record, self._story = record, story

    def play(self) -> None:
        acts: dict[str, Callable[[], None]] = {
            STEADY: self._steady,
            PRIMARY_DOWN: self._primary_down,
            PRIMARY_BACK: self._primary_back,
            FLAPPING: self._flapping,
            CUT_OFF: self._cut_off,
            MIGRATION: self._migration,
            REMOVED: self._removed,
        }
        for name, act in acts.items():
            self._say(name)
            try:
                with self._story.phase(name):
                    act()
            except Unmet as error:
                self._story.unmet.append(f"{name}: {error}")
                say(f"      {error}")
                return
            if self._plan.broken is not Break.NOTHING and self._record.refusals:
                self._story.unmet.append(f"ended after {name}: what was to be refused was refused")
                return

    def _steady(self) -> None:
        """Until both spares have been published for long enough."""
        propagation = self._plan.times.propagation
        self._until(
            "published spares in both backends",
            lambda: (
                {
                    key.backend
                    for key in self._keys("pre-activation")
                    if key.published_at + propagation < time.time()
                }
                == {PRIMARY, STANDBY}
            ),
            propagation + 20,
        )

    def _primary_down(self) -> None:
        began = time.time()
        self._custody.primary.kill()
        self._until_signing_in(STANDBY, self._plan.failover_after + 2 * self._plan.noticing)
        self._note(f"signs in the standby {time.time() - began:.1f} s after the SIGKILL")
        time.sleep(max(0.0, began + self._plan.primary_down - time.time()))

    def _primary_back(self) -> None:
        """Until the keyset signs there again, which takes a fresh spare in the standby that
        verifiers know."""
        self._custody.primary.start()
        began, plan = time.time(), self._plan
        least = plan.failback_after + plan.times.propagation
        self._until_signing_in(PRIMARY, least + 3 * plan.noticing)
        self._note(f"signs in the primary again {time.time() - began:.1f} s after its start")

    def _flapping(self) -> None:
        primary, plan = self._custody.primary, self._plan
        for _ in range(plan.flaps):
            primary.kill()
            time.sleep(plan.flap_down)
            primary.start()
            self._goes_on(DEMO, plan.flap_down + 2 * plan.noticing)
            time.sleep(plan.flap_up)

    def _cut_off(self) -> None:
        standby = self._custody.standby
        standby.freeze()
        time.sleep(self._plan.standby_cut_off)
        standby.thaw()
        self._goes_on(CLOUD, 2 * self._plan.noticing)
        self._until(
            "reports that nothing is down",
            lambda: not any(one.down for one in self._story.reports[-12:]),
            20,
        )

    def _migration(self) -> None:
        """The standby is given up first, so that the new key is new to verifiers and there is time
        to turn round."""
        plan = self._plan
        self._cluster.operate("keysets", "standby", DEMO, "none")
        before = self._cluster.key_facts()
        said = self._cluster.operate("keysets", "migrate", DEMO, "--to", STANDBY, "--dry-run")
        if self._cluster.key_facts() != before or "would" not in said:
            raise Unmet(f"the dry run changed a key or said nothing: {said}")
        self._migrate(STANDBY, "published", "scheduled")
        time.sleep(3)
        self._migrate(PRIMARY, "retiring", "settled")
        time.sleep(3)
        self._migrate(STANDBY, "published", "scheduled")
        self._until_signing_in(STANDBY, plan.times.propagation + 3 * plan.noticing)
        self._expect_stage("retiring")

    def _removed(self) -> None:
        """Until the keys of the primary have left the JWKS, and a little longer."""
        self._custody.primary.kill()
        plan, times = self._plan, self._plan.times
        old = {key.kid for key in self._keys("deactivated") if key.backend == PRIMARY}
        longest = times.grace + times.lifetime + times.leeway + 2 * plan.noticing
        self._until(
            "the end of the old keys' publication",
            lambda: all(self._record.seen[kid].last < time.time() - 3 for kid in old),
            longest + 10,
        )
        self._goes_on(DEMO, plan.noticing)

    def _migrate(self, to: str, *stages: str) -> None:
        said = self._cluster.operate("keysets", "migrate", DEMO, "--to", to)
        self._note(f"migrate to {to}: {' '.join(said.split())[:100]}")
        self._expect_stage(*stages)

    def _expect_stage(self, *stages: str) -> None:
        """Of the migration's progress; a tick may have to come first."""

        def stage() -> str:
            words = ("-o", "json", "keysets", "migrate", DEMO, "--status")
            said = self._cluster.operate(*words)
            found: str = json.loads(said[: said.rindex("}") + 1])["stage"]
            return found

        self._until(f"the stage {' or '.join(stages)}", lambda: stage() in stages, 15)

    def _until_signing_in(self, backend: str, timeout: float) -> None:
        def signs() -> bool:
            kid = self._story.last_kid(DEMO)
            return any(key.kid == kid and key.backend == backend for key in self._keys())

        self._until(f"signing in {backend}", signs, timeout)
        self._goes_on(DEMO, self._plan.noticing)

    def _goes_on(self, keyset: str, timeout: float) -> None:
        now = time.time()

        def fresh() -> bool:
            newest = [one for one in self._story.released[-60:] if one.keyset == keyset]
            return sum(one.at > now for one in newest) >= _GOES_ON

        self._until(f"new tokens of {keyset}", fresh, timeout)

    def _keys(self, state: str | None = None) -> list[KeyFacts]:
        return [
            key
            for key in self._cluster.key_facts()
            if key.keyset == DEMO and state in (None, key.state)
        ]

    def _until(self, what: str, met: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not met():
            if time.monotonic() > deadline:
                raise Unmet(f"waited {timeout:.0f} s for {what}")
            time.sleep(_LOOK)

    def _note(self, what: str) -> None:
        self._story.notes.append(f"{time.time() - self._record.began:.0f} s: {what}")
        say(f"      {what}")

    def _say(self, name: str) -> None:
        record = self._record
        say(
            f"{time.time() - record.began:3.0f} s: {name} ({self._story.count()} tokens, "
            f"{sum(record.accepted.values())} acceptances, {len(record.refusals)} refusals, "
            f"{len(record.kills)} kills)"
        )


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
