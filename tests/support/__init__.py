"""Real parts for tests: SoftHSM tokens, p11-kit servers, running services."""
