"""The Spark job that computes feature tables, and the point-in-time join that reads them."""
