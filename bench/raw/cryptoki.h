/* The part of PKCS#11 2.40 (OASIS) that sign.c calls; other functions only keep their place in
 * CK_FUNCTION_LIST. Without structure packing, as on every Unix. */
#ifndef CRYPTOKI_H
#define CRYPTOKI_H

typedef unsigned long CK_ULONG, CK_RV, CK_FLAGS, CK_SLOT_ID, CK_HANDLE, CK_TYPE;
typedef unsigned char CK_BYTE;

typedef struct {
    CK_TYPE type;
    void *value;
    CK_ULONG length;
} CK_ATTRIBUTE;

typedef struct {
    CK_TYPE mechanism;
    void *parameter;
    CK_ULONG length;
} CK_MECHANISM;

typedef struct {
    CK_BYTE label[32], manufacturer[32], model[16], serial[16];
    CK_FLAGS flags;
    CK_ULONG numbers[10];
    CK_BYTE versions[4], time[16];
} CK_TOKEN_INFO;

typedef struct CK_FUNCTION_LIST {
    CK_BYTE version[2];
    CK_RV (*C_Initialize)(void *);
    CK_RV (*C_Finalize)(void *);
    void *info[2];
    CK_RV (*C_GetSlotList)(CK_BYTE, CK_SLOT_ID *, CK_ULONG *);
    void *slot_info;
    CK_RV (*C_GetTokenInfo)(CK_SLOT_ID, CK_TOKEN_INFO *);
    void *tokens[5];
    CK_RV (*C_OpenSession)(CK_SLOT_ID, CK_FLAGS, void *, void *, CK_HANDLE *);
    void *sessions[5];
    CK_RV (*C_Login)(CK_HANDLE, CK_ULONG, const CK_BYTE *, CK_ULONG);
    void *objects[7];
    CK_RV (*C_FindObjectsInit)(CK_HANDLE, CK_ATTRIBUTE *, CK_ULONG);
    CK_RV (*C_FindObjects)(CK_HANDLE, CK_HANDLE *, CK_ULONG, CK_ULONG *);
    CK_RV (*C_FindObjectsFinal)(CK_HANDLE);
    void *ciphers_and_digests[13];
    CK_RV (*C_SignInit)(CK_HANDLE, CK_MECHANISM *, CK_HANDLE);
    CK_RV (*C_Sign)(CK_HANDLE, const CK_BYTE *, CK_ULONG, CK_BYTE *, CK_ULONG *);
    void *more_signing_and_verifying[14];
    void *generate_key;
    CK_RV (*C_GenerateKeyPair)(CK_HANDLE, CK_MECHANISM *, CK_ATTRIBUTE *, CK_ULONG,
                               CK_ATTRIBUTE *, CK_ULONG, CK_HANDLE *, CK_HANDLE *);
} CK_FUNCTION_LIST;

#endif
