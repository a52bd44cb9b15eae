"""A small shop: customers place orders, handlers do the rest in the background."""
