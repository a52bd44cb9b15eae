"""The Dramatiq messages of claimed deliveries, and their ids."""
