"""On-demand features: what is computed in the request, from a function that is kept as text."""
