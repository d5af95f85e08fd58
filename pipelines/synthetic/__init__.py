"""The built-in world: generated users, items and events with known true preferences."""
