"""What is fast, and against whom.

Each benchmark returns the figures that the command line prints.
"""
