"""Stages that turn an event log into features, models and releases, and the command line that runs them."""
