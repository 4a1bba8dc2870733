"""HSM/KMS-backed JWT signing service."""

__version__ = "0.1.0"
