#!/usr/bin/env python
"""Run the example project's commands, from any directory: `python example/manage.py run_relay`."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Run Django's command line with the example's settings."""
    # The root of the repository replaces this folder, so that a module has only one name: `example.shop`.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example.project.settings")

    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
