"""Pure rules: algorithms, keys, tokens, access. Knows no framework, database or vendor library."""
