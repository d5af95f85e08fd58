"""Training sets, towers and rankers, and the release that is packed from them."""
