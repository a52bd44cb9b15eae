"""Measure this package beside what the database and the broker allow, and beside its peers: `make bench`.

Needs nothing: PostgreSQL and Redis come from wheels unless DATABASE_URL and DRAMATIQ_BROKER_URL name others,
and RabbitMQ is used where one answers. What is compared runs in turn, round by round, so that all see the
same noise. A full run takes some 35 minutes and, since it writes ten million rows, 5 GB as long as it lasts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import uuid
from contextlib import ExitStack

from example import services
from tests.benchmarks import environments, machine, report
from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.catalogue import RETAINED, catalogue
from tests.benchmarks.drivers import ROOT
from tests.benchmarks.figures import Result
from tests.benchmarks.profiling import profile
from tests.benchmarks.progress import progress
from tests.benchmarks.rounds import Plan, run
from tests.benchmarks.surroundings import Surroundings

PAGE = ROOT / "docs" / "reference" / "benchmarks.md"
# The answers of every round.
KEPT = environments.FOLDER / "answers.json"


def main() -> None:
    """Start the servers, run the benchmarks, print the page."""
    options = parse(sys.argv[1:])
    # A run that is ended by a process manager cleans up as well.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    with ExitStack() as stack:
        embedded = not os.environ.get("DATABASE_URL")
        surroundings = Surroundings(
            database_url=stack.enter_context(services.postgres()),
            redis_url=stack.enter_context(services.redis()),
            rabbitmq_url=services.rabbitmq_url(),
            prefix=f"bench_{uuid.uuid4().hex[:8]}",
            with_peers=options.peers,
        )
        stack.callback(surroundings.clean)
        if options.profile:
            profile(options.profile, options.scale, surroundings)
            return
        described = machine.describe(
            surroundings.database_url,
            embedded=embedded,
            redis_url=surroundings.redis_url,
            rabbitmq_url=surroundings.rabbitmq_url,
        )
        if options.scale == "small":
            described.append("a small scale, which shows that everything runs: the figures mean nothing")
        results = measure(chosen(options), options, surroundings)
    tell(results, described, write=options.write)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    known = [one.key for one in catalogue()]
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each benchmark (%(default)s)")
    parser.add_argument(
        "--scale",
        choices=list(RETAINED),
        default="full",
        help="how many events a round has; small: to see in a few minutes that all runs",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=known,
        metavar="NAME",
        help=f"this benchmark (may be repeated): {', '.join(known)}",
    )
    parser.add_argument(
        "--no-peers", dest="peers", action="store_false", help="without packages from elsewhere"
    )
    parser.add_argument(
        "--retained",
        type=int,
        metavar="N",
        help=f"rows that the last benchmark keeps ({RETAINED['full']:,}; small: {RETAINED['small']:,})",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=45,
        metavar="N",
        help="after these, no second round of anything (%(default)s)",
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--profile", choices=("publish", "relay"), help="profile this with cProfile instead")
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> list[Benchmark]:
    """Return the benchmarks asked for."""
    retained = RETAINED[options.scale] if options.retained is None else options.retained
    return [one for one in catalogue(retained) if not options.only or one.key in options.only]


def tell(results: list[Result], described: list[str], *, write: bool) -> None:
    """Print the page, the bars and what went wrong; write the page if asked to."""
    text = report.page(results, described)
    print(text)
    print("\n".join(report.verdicts(results)))
    for result in results:
        for name, figures in result.figures.items():
            if figures.failure:
                print(f"\n{result.benchmark.key}: {name}: {figures.failure}", file=sys.stderr)
    if write:
        PAGE.write_text(text)
        print(f"\nWritten to {PAGE.relative_to(ROOT)}.")


def keep(results: list[Result]) -> None:
    """Keep what was measured so far, in case the run does not get to its end."""
    found = {
        result.benchmark.key: {name: figures.answers for name, figures in result.figures.items()}
        for result in results
    }
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(found, indent=1))


def measure(
    benchmarks: list[Benchmark], options: argparse.Namespace, surroundings: Surroundings
) -> list[Result]:
    """Run benchmarks; one whose broker is missing is skipped and says so."""
    steps = sum(len(one.ways) * (options.rounds + 1) for one in benchmarks)
    results = []
    with progress(steps) as step:
        plan = Plan(
            rounds=options.rounds,
            scale=options.scale,
            deadline=time.monotonic() + 60 * options.minutes,
            start=surroundings.start,
            step=step,
        )
        for one in benchmarks:
            if surroundings.broker_url(one.broker):
                results.append(run(one, plan))
            else:
                results.append(Result(one, {}, 0, skipped=f"no {one.broker} answers"))
            keep(results)
    return results


if __name__ == "__main__":
    main()
