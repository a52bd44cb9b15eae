"""Measure this package beside hand-written floors and beside its peers: `make bench`.

PostgreSQL and Redis come from wheels unless DATABASE_URL and DRAMATIQ_BROKER_URL name others, and RabbitMQ is
used if it is running. The compared ways run in turn, round by round, so that all see the same noise. A full
run takes about an hour. It writes ten million rows, which take 5 GB until the end of the run.
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

from . import environments, machine, report
from .benchmark import Benchmark
from .catalogue import RETAINED, catalogue
from .drivers import ROOT
from .figures import Result
from .profiling import profile
from .progress import progress
from .rounds import Plan, run
from .surroundings import Surroundings

PAGE = ROOT / "docs" / "reference" / "benchmarks.md"
# The answers of every round so far.
ANSWERS = environments.FOLDER / "answers.json"


def main() -> None:
    """Start the servers, run the benchmarks, print the page."""
    options = parse(sys.argv[1:])
    # A run that a process manager ends also cleans up.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    with ExitStack() as stack:
        embedded = not os.environ.get("DATABASE_URL")
        surroundings = Surroundings(
            database_url=stack.enter_context(services.postgres(durable=True)),
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
            described.append("a small scale, which proves that everything runs; the figures mean nothing")
        results = measure(chosen(options), options, surroundings)
    print_results(results, described, write=options.write)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    known = [one.key for one in catalogue()]
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each benchmark (%(default)s)")
    parser.add_argument(
        "--scale",
        choices=list(RETAINED),
        default="full",
        help="the number of events of a round; small: a few minutes, to test that everything runs",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=known,
        metavar="NAME",
        help=f"this benchmark (may be repeated): {', '.join(known)}",
    )
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="without other packages")
    parser.add_argument(
        "--retained",
        type=int,
        metavar="N",
        help=f"finished rows of the last benchmark ({RETAINED['full']:,}; small: {RETAINED['small']:,})",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=75,
        metavar="N",
        help="after these, each benchmark has one round (%(default)s)",
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument(
        "--profile", choices=("publish", "relay"), help="profile this part with cProfile instead"
    )
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> list[Benchmark]:
    """Return the selected benchmarks."""
    retained = RETAINED[options.scale] if options.retained is None else options.retained
    return [one for one in catalogue(retained) if not options.only or one.key in options.only]


def print_results(results: list[Result], described: list[str], *, write: bool) -> None:
    """Print the page, the bars and the failures; write the page if asked to."""
    text = report.page(results, described)
    print(text)
    print("\n".join(report.bar_results(results)))
    for result in results:
        for name, figures in result.figures.items():
            if figures.failure:
                print(f"\n{result.benchmark.key}: {name}: {figures.failure}", file=sys.stderr)
    if write:
        PAGE.write_text(text)
        print(f"\nWritten to {PAGE.relative_to(ROOT)}.")


def save_answers(results: list[Result]) -> None:
    """Save the answers so far, in case the run is interrupted."""
    found = {
        result.benchmark.key: {name: figures.answers for name, figures in result.figures.items()}
        for result in results
    }
    ANSWERS.parent.mkdir(exist_ok=True)
    ANSWERS.write_text(json.dumps(found, indent=1))


def measure(
    benchmarks: list[Benchmark], options: argparse.Namespace, surroundings: Surroundings
) -> list[Result]:
    """Run benchmarks; skip those whose broker is missing, with the reason."""
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
            save_answers(results)
    return results


if __name__ == "__main__":
    main()
