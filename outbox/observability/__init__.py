"""Telemetry signals, and the log that subscribes to them."""
