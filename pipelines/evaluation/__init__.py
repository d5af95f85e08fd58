"""Offline evaluation: past requests replayed through the served recommender, beside baselines."""
