"""Whether cost stays flat: `python -m tests.benchmarks.flatness --rows 10000000`.

The relay's throughput on an empty table, on one with so many retained rows, and while a transaction is open
all the time; and that of publishers with NOTIFY on and off. Servers come from wheels unless DATABASE_URL and
DRAMATIQ_BROKER_URL name others.
"""

from __future__ import annotations

import argparse

from tests.benchmarks.servers import servers


def main(
    rows: int, *, events: int = 10_000, rounds: int = 5, publishers: int = 100, seconds: float = 5
) -> None:
    """Print the figures; Django is set up."""
    from tests.benchmarks import notifying, retention

    retention.main(rows, events=events, rounds=rounds)
    notifying.main(publishers=publishers, seconds=seconds, rounds=rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="retained, of events and of deliveries")
    parser.add_argument("--events", type=int, default=10_000, help="relayed in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--publishers", type=int, default=100, help="processes that publish")
    parser.add_argument("--seconds", type=float, default=5, help="for which they publish in a round")
    with servers():
        main(**vars(parser.parse_args()))
