"""From a request to k items: the recommender, its release, online features, filters and the HTTP app."""
