"""The main job of the demo; import it after `django.setup()`."""

import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress

from django.contrib.auth import get_user_model
from django.core.management import call_command

from example.shop import queues
from example.shop.catalogue import stock_up
from outbox.models import Delivery, ProcessHeartbeat

from . import ledger, report, site
from .children import POLL_S, Children
from .errors import DemoError
from .office import do_the_office
from .options import Options
from .orders import Placed, place_all, plan_orders
from .screen import Screen

LOGIN = "admin"
THREADS = 8
# The demo fails if no delivery finishes for this long.
STALLED_S = 60.0


class Job:
    """Start the processes, place orders, wait, and check the effects."""

    def __init__(self, *, options: Options, screen: Screen, children: Children) -> None:
        """Choose the site's port and the admin's password."""
        self._options = options
        self._screen = screen
        self._children = children
        self._password = secrets.token_urlsafe(9)
        self._port = site.free_port(options.port)
        self._url = f"http://{site.HOST}:{self._port}/"

    def run(self) -> bool:
        """Run the job and return whether the check passed."""
        self._prepare_database()
        self._start_processes()
        placed = self._place_orders()
        do_the_office()
        self._wait_for_deliveries()
        report.show_handlers(self._screen)
        return self._check(placed)

    def serve(self) -> None:
        """Write the addresses of the site and keep it running until Ctrl-C.

        Raises:
            DemoError: a process ended.
        """
        if self._options.port not in {0, self._port}:
            self._screen.write(f"Port {self._options.port} is in use; the site has another port.")
        self._screen.write(f"\nThe shop    {self._url}", style="bold")
        self._screen.write(f"The admin   {self._url}admin/    {LOGIN} / {self._password}", style="bold")
        self._screen.write("Ctrl-C stops the demo.")
        with suppress(KeyboardInterrupt):
            while True:
                self._children.check()
                time.sleep(POLL_S)

    def _prepare_database(self) -> None:
        self._screen.write("Migrating …")
        call_command("migrate", verbosity=0, interactive=False)
        stock_up()
        get_user_model().objects.create_superuser(LOGIN, password=self._password)

    def _start_processes(self) -> None:
        children = self._children
        # They stop in reverse order: site, relay, worker. The worker stops last, so that it can report the
        # outcomes of its messages.
        if os.environ["DRAMATIQ_BROKER_URL"]:
            # Only the demo's queues: an existing RabbitMQ server has others.
            options = ("--processes", "1", "--threads", str(THREADS), "--queues", *queues.ALL)
            worker = children.manage("worker", "rundramatiq", *options)
            children.manage("relay", "run_relay")
        else:
            self._screen.write("No Redis found: broker, worker and relay share one process.", style="yellow")
            worker = children.module("relay-and-worker", "example.demo.inprocess")
        children.manage("site", "runserver", "--noreload", f"{site.HOST}:{self._port}", EXAMPLE_DEBUG="1")
        self._screen.write("Starting worker, relay and site …")
        children.wait_until(lambda: worker.wrote("ready for action"), awaited="the worker to start")
        children.wait_until(ProcessHeartbeat.objects.relays().alive().exists, awaited="the relay to start")
        children.wait_until(lambda: site.answers(self._url), awaited="the site to answer")

    def _place_orders(self) -> Sequence[Placed]:
        plans = plan_orders(self._options.orders, rolled_back=self._options.rolled_back)
        with self._screen.progress("Placing orders", len(plans)) as advance:
            return place_all(plans, advance)

    def _wait_for_deliveries(self) -> None:
        total = Delivery.objects.count()
        finished, stalled_at = 0, time.monotonic() + STALLED_S
        with self._screen.progress("Delivering", total) as advance:
            while finished < total:
                self._children.check()
                before, finished = finished, Delivery.objects.exclude(finished_at=None).count()
                advance(finished)
                if finished > before:
                    stalled_at = time.monotonic() + STALLED_S
                elif time.monotonic() > stalled_at:
                    raise DemoError(f"{total - finished:,} of {total:,} deliveries did not finish.")
                time.sleep(POLL_S)
        self._children.wait_until(report.is_complete, awaited="the statistics to be complete")

    def _check(self, placed: Sequence[Placed]) -> bool:
        findings = ledger.check(placed)
        self._screen.write("")
        for finding in findings:
            for line in finding.lines():
                self._screen.write(line, style="green" if finding.passed else "bold red")
        passed = all(finding.passed for finding in findings)
        self._screen.write(f"Check {'passed' if passed else 'FAILED'}.", style="bold")
        return passed
