"""What a backend's author needs to prove a backend. Needs pytest and PyJWT to be installed."""

from kmsjwks.testing.backend_contract import BackendContract

__all__ = ["BackendContract"]
