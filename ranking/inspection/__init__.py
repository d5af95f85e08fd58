"""What a trained ranker depends on and how long it takes."""
