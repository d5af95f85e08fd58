"""The former name of ``facts``: registries that Feast wrote before import their views from here."""

from feature_repo.facts import item_sliding, user_sliding

__all__ = ["item_sliding", "user_sliding"]
