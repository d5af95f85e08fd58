"""The event log's names and its folder form, shared by those who write it and those who read it."""
