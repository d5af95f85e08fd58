"""The pure recommender: user features -> candidates -> hydrate -> rank -> filter; arrays in, arrays out."""
