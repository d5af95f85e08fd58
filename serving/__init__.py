"""From a request to k items.

The recommender, its release, online features, filters and the HTTP app.
"""
