"""A user's features at the moment of a request: Feast's online store and the events not yet streamed."""
