"""The relay: a process that sends committed deliveries from the table to the broker."""
