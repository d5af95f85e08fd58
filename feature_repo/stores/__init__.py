"""Where features are kept: Feast's online store in Redis, its offline store in DuckDB, and the connection to both."""
