"""A strict fake of AWS KMS over HTTP, in a process of its own; its keys are software, for tests."""

from tests.support.kms.client import ACCOUNT, FakeKms, SignRecord

__all__ = ["ACCOUNT", "FakeKms", "SignRecord"]
