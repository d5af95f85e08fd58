"""A user's own features: what the ``features.py`` beside a ``dataset.toml`` declares."""
