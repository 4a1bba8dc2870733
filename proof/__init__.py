"""`make rotation-proof`: verifiers with their default caches against replicas that are killed."""
