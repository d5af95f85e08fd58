"""A sequential two-tower model: a causal transformer over the items of a user's history."""
