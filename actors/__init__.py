"""Ray actors and deployments: decoding replicas, aligner, index host, and what runs inside them."""
