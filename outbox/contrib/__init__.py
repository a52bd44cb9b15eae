"""Integrations with optional packages; nothing imports them unless the project uses them."""
