"""``funnel erase``: one module for each kind of place where a user's data lie."""
