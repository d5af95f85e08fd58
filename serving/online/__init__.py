"""A user's features at request time: Feast's online store and the events not yet streamed."""
