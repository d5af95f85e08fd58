"""Fits, checks, calibrates, compares and chooses rankers; only this part of ranking has torch."""
