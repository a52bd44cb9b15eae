"""The relay: a process that takes committed deliveries from the table to the broker."""
