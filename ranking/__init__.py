"""The last stage of a request: rows of (request, candidate) features to calibrated probabilities and one score."""
