"""Items added to, or removed from, the catalogue of a running release."""
