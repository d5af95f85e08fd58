"""Helpers of more than one test file: small worlds with known answers, and stand-ins for what is outside."""
