"""The stages in order: what the command line calls and what ``funnel demo`` chains."""
