"""Dataset specs that ship with Funnel."""
