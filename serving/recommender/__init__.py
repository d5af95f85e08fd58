"""The pure recommender: user features -> candidates -> hydrate -> rank -> filter."""
