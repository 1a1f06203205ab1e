"""Device profiles and whether a model fits them."""
