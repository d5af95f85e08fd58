"""The stages of the pipeline and their command line.

The stages turn an event log into features, models and releases.
"""
