"""Windowed aggregates of events: what one is, and its value as of any moment."""
