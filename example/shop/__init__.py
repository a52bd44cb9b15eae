"""A small shop: customers place orders, and handlers process them in the background."""
