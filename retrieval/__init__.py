"""Candidate generation: two towers, their training, the FAISS index and the other sources."""
