"""Who is calling: bearer tokens, JWTs of trusted issuers, client certificates."""

from kmsjwks.http.authentication.chain import Authenticator, authenticate, build_chain

__all__ = ["Authenticator", "authenticate", "build_chain"]
