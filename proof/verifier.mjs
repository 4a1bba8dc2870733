// A Node resource server for the proof: one createRemoteJWKSet with its default cache and cooldown.
//
// usage: node verifier.mjs JWKS_URL ISSUER
// Each line on standard input is a token; the answer is one line of JSON: {ok} or {ok, code, message}.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { webcrypto } from "node:crypto";

// Node 18 keeps WebCrypto out of the global scope, where jose looks for it.
globalThis.crypto ??= webcrypto;
// `make interop` installs jose there, from a lock file.
const { resolve } = createRequire(new URL("../tests/interop/package.json", import.meta.url));
const { createRemoteJWKSet, jwtVerify } = await import(pathToFileURL(resolve("jose")));

const [jwksUrl, issuer] = process.argv.slice(2);
const keys = createRemoteJWKSet(new URL(jwksUrl));
for await (const token of createInterface({ input: process.stdin })) {
  try {
    await jwtVerify(token, keys, { issuer });
    console.log(JSON.stringify({ ok: true }));
  } catch (error) {
    console.log(JSON.stringify({ ok: false, code: error.code, message: error.message }));
  }
}
