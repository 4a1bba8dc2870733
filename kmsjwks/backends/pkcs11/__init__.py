"""Any PKCS#11 token as a backend, through python-pkcs11."""
