"""The HTTP contract: request and response bodies, and problem details."""
