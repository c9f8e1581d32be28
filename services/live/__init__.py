"""The page at /dashboard: what replicas, aligner and rollouts are doing, as it happens."""
