"""Feast's online store in Redis and its offline store in DuckDB, and how to connect to them."""
