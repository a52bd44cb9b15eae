"""Background receivers, and signals that are recorded as events."""
