"""The event log: names that its writers and readers share, and its form as a folder of files."""
