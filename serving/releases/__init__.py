"""Releases: loaded whole or refused, verified, extended by added items, swapped while serving."""
