"""Stand-ins that only tests use. Their keys are software keys and say so."""

from tests.fakes.backend import FakeBackend
from tests.fakes.software import SoftwareKey

__all__ = ["FakeBackend", "SoftwareKey"]
