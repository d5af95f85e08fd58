"""Releases: loaded whole or refused, verified, extended by added items, and swapped while requests are answered."""
