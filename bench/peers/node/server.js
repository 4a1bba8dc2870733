// A bare signing service: fastify and pkcs11js, two processes. No auth, audit, token rules or
// verification. Environment as for fastapi_app.py, and BENCH_PORT.
import cluster from 'node:cluster';
import { createHash, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import Fastify from 'fastify';
import pkcs11js from 'pkcs11js';

const { BENCH_MODULE, BENCH_LABEL, BENCH_PIN_FILE, BENCH_KEY, BENCH_PORT, BENCH_WORKERS } = process.env;
const HEADER = `${Buffer.from('{"alg":"ES256","typ":"JWT","kid":"bench"}').toString('base64url')}.`;

function openKey() {
  const module = new pkcs11js.PKCS11();
  module.load(BENCH_MODULE);
  module.C_Initialize();
  const slot = module
    .C_GetSlotList(true)
    .find((one) => module.C_GetTokenInfo(one).label.trim() === BENCH_LABEL);
  const session = module.C_OpenSession(slot, pkcs11js.CKF_SERIAL_SESSION);
  module.C_Login(session, pkcs11js.CKU_USER, readFileSync(BENCH_PIN_FILE, 'utf8').trim());
  module.C_FindObjectsInit(session, [
    { type: pkcs11js.CKA_CLASS, value: pkcs11js.CKO_PRIVATE_KEY },
    { type: pkcs11js.CKA_LABEL, value: BENCH_KEY },
  ]);
  const key = module.C_FindObjects(session);
  module.C_FindObjectsFinal(session);
  const buffer = Buffer.alloc(64);
  return (digest) => {
    module.C_SignInit(session, { mechanism: pkcs11js.CKM_ECDSA }, key);
    return module.C_Sign(session, digest, buffer);
  };
}

async function serve() {
  const sign = openKey();
  const app = Fastify();
  app.post('/sign', async (request) => {
    const now = Math.floor(Date.now() / 1000);
    const claims = { ...request.body.claims, iss: 'bench', iat: now, nbf: now, exp: now + 300, jti: randomUUID() };
    const signed = HEADER + Buffer.from(JSON.stringify(claims)).toString('base64url');
    const signature = sign(createHash('sha256').update(signed).digest());
    return { token: `${signed}.${signature.toString('base64url')}` };
  });
  await app.listen({ port: Number(BENCH_PORT), host: '127.0.0.1' });
}

if (cluster.isPrimary) {
  // One after the other: SoftHSM rewrites the token at every login.
  for (let i = 0; i < Number(BENCH_WORKERS); i += 1) {
    const worker = cluster.fork();
    await new Promise((resolve) => worker.once('listening', resolve));
  }
} else {
  await serve();
}
