"""The steps of scenarios."""
