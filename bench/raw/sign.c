/* sign MODULE LABEL PINFILE ALG PROCESSES SECONDS: signatures a second of a raw C_Sign loop.
 *
 * Each process has a session of its own and holds the key's handle. The key is made at the first
 * use and stays on the token. Prints {"count": N, "seconds": S} as JSON. */
#include "cryptoki.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CKF_RW_SESSION = 2, CKF_SERIAL_SESSION = 4, CKU_USER = 1, MOST_PROCESSES = 64 };
enum { CKO_PRIVATE_KEY = 3, CKA_CLASS = 0, CKA_TOKEN = 1, CKA_PRIVATE = 2, CKA_LABEL = 3 };
enum { CKA_SENSITIVE = 0x103, CKA_SIGN = 0x108, CKA_VERIFY = 0x10a, CKA_MODULUS_BITS = 0x121 };
enum { CKA_PUBLIC_EXPONENT = 0x122, CKA_EXTRACTABLE = 0x162, CKA_EC_PARAMS = 0x180 };
enum { MESSAGE_BYTES = 320 }; /* about a JWT's signing input */

typedef struct {
    const char *name;
    CK_TYPE generate, sign;
    CK_ULONG input_bytes; /* RSA: DigestInfo and hash; ECDSA: hash; EdDSA: the message */
    CK_BYTE params[12];
    CK_ULONG params_bytes;
} Algorithm;

static const Algorithm ALGORITHMS[] = {
    {"RS256", 0x0000, 0x0001, 51, {0}, 0},
    {"ES256", 0x1040, 0x1041, 32, {6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}, 10},
    {"EdDSA", 0x1055, 0x1057, MESSAGE_BYTES, {6, 3, 0x2b, 0x65, 0x70}, 5},
};
static const CK_BYTE SHA256_DIGEST_INFO[19] = {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60,
                                               0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
                                               0x01, 0x05, 0x00, 0x04, 0x20};

typedef struct {
    CK_FUNCTION_LIST *p11;
    CK_HANDLE session, key;
} Signer;

static void fail(const char *what, CK_RV rv) {
    fprintf(stderr, "%s failed: 0x%lx\n", what, rv);
    exit(1);
}

static void check(const char *what, CK_RV rv) {
    if (rv != 0)
        fail(what, rv);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static CK_FUNCTION_LIST *load(const char *module) {
    CK_FUNCTION_LIST *p11 = NULL;
    void *library = dlopen(module, RTLD_NOW);
    if (library == NULL)
        fail(dlerror(), 0);
    CK_RV (*get)(CK_FUNCTION_LIST **) =
        (CK_RV(*)(CK_FUNCTION_LIST **))dlsym(library, "C_GetFunctionList");
    if (get == NULL)
        fail("C_GetFunctionList", 0);
    check("C_GetFunctionList", get(&p11));
    check("C_Initialize", p11->C_Initialize(NULL));
    return p11;
}

static CK_SLOT_ID find_slot(CK_FUNCTION_LIST *p11, const char *label) {
    CK_SLOT_ID slots[16];
    CK_ULONG count = 16, size = strlen(label);
    check("C_GetSlotList", p11->C_GetSlotList(1, slots, &count));
    for (CK_ULONG i = 0; i < count; i++) {
        CK_TOKEN_INFO info;
        check("C_GetTokenInfo", p11->C_GetTokenInfo(slots[i], &info));
        if (memcmp(info.label, label, size) == 0 && (size == 32 || info.label[size] == ' '))
            return slots[i];
    }
    fail("finding the token", 0);
    return 0;
}

static CK_HANDLE open_session(CK_FUNCTION_LIST *p11, const char *label, const char *pin_file) {
    CK_HANDLE session;
    char pin[256] = "";
    FILE *file = fopen(pin_file, "r");
    if (file == NULL || fgets(pin, sizeof pin, file) == NULL)
        fail("reading the PIN", 0);
    fclose(file);
    pin[strcspn(pin, "\n")] = 0;
    check("C_OpenSession", p11->C_OpenSession(find_slot(p11, label),
                                              CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL,
                                              &session));
    check("C_Login", p11->C_Login(session, CKU_USER, (const CK_BYTE *)pin, strlen(pin)));
    return session;
}

static CK_HANDLE make_key(CK_FUNCTION_LIST *p11, CK_HANDLE session, const Algorithm *alg) {
    CK_BYTE yes = 1, no = 0, exponent[] = {1, 0, 1};
    CK_ULONG bits = 2048;
    CK_HANDLE public, private;
    CK_MECHANISM mechanism = {alg->generate, NULL, 0};
    CK_ATTRIBUTE public_rsa[] = {{CKA_TOKEN, &yes, 1},
                                 {CKA_VERIFY, &yes, 1},
                                 {CKA_MODULUS_BITS, &bits, sizeof bits},
                                 {CKA_PUBLIC_EXPONENT, exponent, 3}};
    CK_ATTRIBUTE public_ec[] = {{CKA_TOKEN, &yes, 1},
                                {CKA_VERIFY, &yes, 1},
                                {CKA_EC_PARAMS, (void *)alg->params, alg->params_bytes}};
    CK_ATTRIBUTE template[] = {{CKA_TOKEN, &yes, 1},
                               {CKA_PRIVATE, &yes, 1},
                               {CKA_SENSITIVE, &yes, 1},
                               {CKA_EXTRACTABLE, &no, 1},
                               {CKA_SIGN, &yes, 1},
                               {CKA_LABEL, (void *)alg->name, strlen(alg->name)}};
    int rsa = alg->params_bytes == 0;
    check("C_GenerateKeyPair",
          p11->C_GenerateKeyPair(session, &mechanism, rsa ? public_rsa : public_ec, rsa ? 4 : 3,
                                 template, 6, &public, &private));
    return private;
}

static CK_HANDLE find_or_make_key(CK_FUNCTION_LIST *p11, CK_HANDLE session, const Algorithm *alg) {
    CK_ULONG class = CKO_PRIVATE_KEY, found = 0;
    CK_HANDLE key;
    CK_ATTRIBUTE wanted[] = {{CKA_CLASS, &class, sizeof class},
                             {CKA_LABEL, (void *)alg->name, strlen(alg->name)}};
    check("C_FindObjectsInit", p11->C_FindObjectsInit(session, wanted, 2));
    check("C_FindObjects", p11->C_FindObjects(session, &key, 1, &found));
    check("C_FindObjectsFinal", p11->C_FindObjectsFinal(session));
    return found ? key : make_key(p11, session, alg);
}

static Signer prepare(char **words, const Algorithm *alg) {
    Signer signer;
    signer.p11 = load(words[1]);
    signer.session = open_session(signer.p11, words[2], words[3]);
    signer.key = find_or_make_key(signer.p11, signer.session, alg);
    return signer;
}

static void sign_once(const Signer *signer, const Algorithm *alg, const CK_BYTE *input) {
    CK_BYTE signature[512];
    CK_ULONG size = sizeof signature;
    CK_MECHANISM mechanism = {alg->sign, NULL, 0};
    check("C_SignInit", signer->p11->C_SignInit(signer->session, &mechanism, signer->key));
    check("C_Sign",
          signer->p11->C_Sign(signer->session, input, alg->input_bytes, signature, &size));
}

static unsigned long sign_until(const Signer *signer, const Algorithm *alg, double end) {
    unsigned long count = 0;
    CK_BYTE input[MESSAGE_BYTES];
    memset(input, 'a', sizeof input);
    if (alg->input_bytes == 51)
        memcpy(input, SHA256_DIGEST_INFO, sizeof SHA256_DIGEST_INFO);
    for (; now() < end; count++) {
        memcpy(input + alg->input_bytes - sizeof count, &count, sizeof count);
        sign_once(signer, alg, input);
    }
    return count;
}

/* One after the other: SoftHSM rewrites the token at every login. */
static void run(char **words, const Algorithm *alg, unsigned long *count, int ready, int go) {
    double end;
    Signer signer = prepare(words, alg);
    if (write(ready, "r", 1) != 1 || read(go, &end, sizeof end) != sizeof end)
        fail("waiting for the start", 0);
    *count = sign_until(&signer, alg, end);
    _exit(0);
}

static const Algorithm *find_algorithm(const char *name) {
    for (size_t i = 0; i < sizeof ALGORITHMS / sizeof *ALGORITHMS; i++)
        if (strcmp(ALGORITHMS[i].name, name) == 0)
            return &ALGORITHMS[i];
    fail("finding the algorithm", 0);
    return NULL;
}

int main(int argc, char **argv) {
    int ready[2], go[2], processes = argc == 7 ? atoi(argv[5]) : 0;
    double seconds = argc == 7 ? atof(argv[6]) : 0;
    unsigned long total = 0;
    if (processes < 1 || processes > MOST_PROCESSES || seconds <= 0)
        fail("usage: sign MODULE LABEL PINFILE ALG PROCESSES SECONDS; reading it", 0);
    const Algorithm *alg = find_algorithm(argv[4]);
    unsigned long *counts = mmap(NULL, MOST_PROCESSES * sizeof *counts, PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (counts == MAP_FAILED || pipe(go) != 0)
        fail("preparing", 0);
    for (int i = 0; i < processes; i++) {
        char byte;
        if (pipe(ready) != 0)
            fail("pipe", 0);
        if (fork() == 0) {
            close(go[1]);
            run(argv, alg, &counts[i], ready[1], go[0]);
        }
        close(ready[1]); /* so that a child that fails ends the read */
        if (read(ready[0], &byte, 1) != 1)
            fail("a process", 0);
    }
    double began = now(), end = began + seconds;
    for (int i = 0; i < processes; i++)
        if (write(go[1], &end, sizeof end) != sizeof end)
            fail("starting", 0);
    for (int status; wait(&status) > 0;)
        if (status != 0)
            fail("a process", 0);
    seconds = now() - began;
    for (int i = 0; i < processes; i++)
        total += counts[i];
    printf("{\"count\": %lu, \"seconds\": %.4f}\n", total, seconds);
    return 0;
}
