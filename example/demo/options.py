"""The command line of the demo."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

DESCRIPTION = """
Start a small shop as real processes, place orders, roll some of them back, and check that every committed
order had its effects and no rolled-back order had any. DATABASE_URL (postgresql://) and DRAMATIQ_BROKER_URL
(redis://, amqp://) select existing servers: the demo creates its own database and its own names there.
Without these variables the demo starts its own servers.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The parsed command line."""

    exit: bool
    orders: int
    rolled_back: int
    port: int


def parse(argv: Sequence[str]) -> Options:
    """Parse the command line; exit with a message if an option is wrong."""
    parser = argparse.ArgumentParser(prog="python -m example.demo", description=DESCRIPTION)
    parser.add_argument("--exit", action="store_true", help="end after the check instead of serving the site")
    parser.add_argument("--orders", type=int, default=500, metavar="N", help="orders to place (default: 500)")
    parser.add_argument(
        "--rolled-back", type=int, default=50, metavar="N", help="how many of them to roll back (default: 50)"
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="port of the site; 0 for any free port (default: 8000)"
    )
    options = Options(**vars(parser.parse_args(argv)))
    if not 0 <= options.rolled_back <= options.orders:
        parser.error(f"--rolled-back {options.rolled_back} is not between 0 and --orders {options.orders}")
    if not 0 <= options.port <= 65535:
        parser.error(f"--port {options.port} is not between 0 and 65535")
    return options
