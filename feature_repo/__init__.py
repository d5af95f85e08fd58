"""What Funnel knows about users and items: the dataset spec, column names and Feast definitions."""
