"""The HTTP contract: request and response bodies, problem details, and what ``/openapi.json`` says of them."""
