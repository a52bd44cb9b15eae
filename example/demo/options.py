"""What the demo is asked to do."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

DESCRIPTION = """
Start a small shop as real processes, place orders, roll some of them back, and check that every committed
order's effects happened and no rolled-back order's did. DATABASE_URL (postgresql://) and DRAMATIQ_BROKER_URL
(redis://, amqp://) point it at servers of yours, where it works in a database and under names of its own;
without them it brings its own servers.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, understood."""

    exit: bool
    orders: int
    rolled_back: int
    port: int


def parse(argv: Sequence[str]) -> Options:
    """Read the command line; ends the program with a message where it makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m example.demo", description=DESCRIPTION)
    parser.add_argument("--exit", action="store_true", help="end after the check instead of serving the site")
    parser.add_argument("--orders", type=int, default=500, metavar="N", help="orders to place (default: 500)")
    parser.add_argument(
        "--rolled-back", type=int, default=50, metavar="N", help="how many of them to roll back (default: 50)"
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="the site's port; 0 takes any free one (default: 8000)"
    )
    options = Options(**vars(parser.parse_args(argv)))
    if not 0 <= options.rolled_back <= options.orders:
        parser.error(f"--rolled-back {options.rolled_back} is not between 0 and --orders {options.orders}")
    if not 0 <= options.port <= 65535:
        parser.error(f"--port {options.port} is not between 0 and 65535")
    return options
