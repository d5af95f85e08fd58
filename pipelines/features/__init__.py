"""The Spark job that computes feature tables, and the point-in-time join that reads them.

What an aggregate of events is stands in ``feature_repo.aggregates``.
"""
