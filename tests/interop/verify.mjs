// Verifies a JWT the way a Node resource server does: from the JWKS URL alone.
//
// usage: node verify.mjs JWKS_URL ISSUER   (the token on standard input)
// Prints {ok, kid, alg, payload}, or {ok: false, code, message} and exits 1.
import { readFileSync } from "node:fs";
import { webcrypto } from "node:crypto";

// Node 18 keeps WebCrypto out of the global scope, where jose looks for it.
globalThis.crypto ??= webcrypto;
const { createRemoteJWKSet, jwtVerify } = await import("jose");

const [jwksUrl, issuer] = process.argv.slice(2);
try {
  const token = readFileSync(0, "utf8").trim();
  const keys = createRemoteJWKSet(new URL(jwksUrl));
  const { payload, protectedHeader } = await jwtVerify(token, keys, { issuer });
  const { kid, alg } = protectedHeader;
  console.log(JSON.stringify({ ok: true, kid, alg, payload }));
} catch (error) {
  console.log(JSON.stringify({ ok: false, code: error.code, message: error.message }));
  process.exitCode = 1;
}
