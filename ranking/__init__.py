"""The last stage of a request: rows of candidates to calibrated probabilities and one score."""
