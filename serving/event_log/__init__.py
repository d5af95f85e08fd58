"""The durable log of accepted events: Redis Stream, Kafka or files, with deduplication."""
