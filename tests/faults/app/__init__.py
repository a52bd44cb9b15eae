"""The app of the fault tests."""

# A plain handler, a `transactional` one and an `ordered` one.
HANDLERS = ("file", "book", "follow")
