"""Described files in, typed Parquet tables out, unusable rows in quarantine."""
