"""The HTTP app: routes, middleware, access control and probes."""
