"""Metrics, traces and logs of a server and of all its workers."""
