"""Helpers of more than one test file.

Small worlds with known answers, and stand-ins for what is outside.
"""
