"""What Funnel knows about users and items, below every other package.

The dataset spec, column names, Feast definitions, settings, and ``aggregates``: the one definition
of the features that stream, batch job and server compute from events.
"""
