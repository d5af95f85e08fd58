"""What is fast, and against whom: each benchmark returns the figures that the command line prints."""
