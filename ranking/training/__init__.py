"""Fits, checks, calibrates and compares rankers; the only part of ranking that imports torch."""
