"""What is run on a live system: skew, recount, replay and batch recommendations."""
