"""`make rotation-proof` and `make failover-proof`: verifiers with their default caches against
replicas and backends that are killed."""
