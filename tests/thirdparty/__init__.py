"""A site with packages from PyPI that enqueue tasks of Django's task framework."""
