"""Two towers that learn from user-item pairs alone, and the public splits they are measured on."""
