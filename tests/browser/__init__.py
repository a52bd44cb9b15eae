"""Walks through the admin in a browser."""
