"""The HTTP app: routes, middleware, load shedding, access control and probes."""
