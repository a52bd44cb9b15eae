"""`python -m example.demo`: the shop as real processes, and a check of the effects."""
