"""How a project tests what it does with the outbox: with pytest, and in `test_pages.py` with unittest."""
