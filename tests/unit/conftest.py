"""Hypothesis for all unit tests: no timing flakes, no files left behind, failures replayable."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("kmsjwks", deadline=None, database=None, print_blob=True)
settings.load_profile("kmsjwks")
