"""The Spark job that computes daily feature tables, and the point-in-time join that reads them.

Features of recent events are computed by ``feature_repo.facts``, here through ``stream_facts``.
"""
