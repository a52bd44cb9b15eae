"""Tests of a project that uses the outbox: with pytest, and in `test_pages.py` with unittest."""
