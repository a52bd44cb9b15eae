"""Faults of the database and of the connections to it."""

from __future__ import annotations

import time
from datetime import timedelta

import psycopg

from tests.faults import effort
from tests.faults.half_open import HalfOpenProxy
from tests.faults.ledger import APPLICATION
from tests.support.processes import wait_until

from .run import MOMENT, Run


def restart_postgres(run: Run) -> None:
    """Restart PostgreSQL as `pg_ctl restart -m immediate` does; it recovers as after a crash."""
    run.for_a_while(MOMENT)
    run.stage.postgres.restart("immediate")


def terminate_backends(run: Run) -> None:
    """Terminate connections of all processes, two at a time, 20 times."""
    for _ in range(20):
        run.for_a_while(timedelta(seconds=0.2))
        run.stage.ledger.first_row(
            "SELECT count(pg_terminate_backend(pid)) FROM ("
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name <> %s"
            " ORDER BY random() LIMIT 2) AS few",
            [APPLICATION],
        )


def idle_connections(run: Run) -> None:
    """Open 200 idle connections, some of them in a transaction."""
    for number in range(200):
        idle = run.stack.enter_context(
            psycopg.connect(run.stage.database_url, autocommit=number % 10 > 0, application_name=APPLICATION)
        )
        idle.execute("SELECT count(*) FROM outbox_delivery WHERE id = 0")
    run.wait_for_effects(50)


def full_disk(run: Run) -> None:
    """Refuse every seventh new delivery with the error of a full disk."""
    run.stage.ledger.execute(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';"
        " END $$",
        "CREATE TRIGGER full_disk BEFORE INSERT ON outbox_delivery FOR EACH ROW"
        " WHEN (NEW.id % 7 = 0) EXECUTE FUNCTION full_disk()",
    )
    run.wait_for_sales(20)
    run.stage.ledger.execute("DROP TRIGGER full_disk ON outbox_delivery", "DROP FUNCTION full_disk")


def lock_out_publishers(run: Run) -> None:
    """Lock the table until a publisher reaches its statement_timeout."""
    timeout = run.stage.waiting_for_output(run.stage.publisher, "statement timeout")
    with psycopg.connect(run.stage.database_url) as locker, timeout:
        locker.execute("LOCK TABLE outbox_delivery IN EXCLUSIVE MODE")


def late_transaction(run: Run) -> None:
    """Keep a publishing transaction open while later transactions are committed and delivered."""
    with run.stage.late_sale(run.name):
        open_until = time.monotonic() + effort.LATE_S
        run.wait_for_effects(50)
        while time.monotonic() < open_until:
            run.wait_for_effects(1)


def lose_notifications(run: Run) -> None:
    """Replace the relay with one whose LISTEN connection becomes half-open."""
    proxy = run.stack.enter_context(HalfOpenProxy(run.stage.database_url))
    run.stage.kill_relay()
    relay = run.stage.start_relay(DATABASE_URL=proxy.url)
    run.stack.callback(run.stage.start_relay)
    run.stack.callback(run.stage.kill_relay, relay)
    run.wait_for_effects(10)
    wait_until(proxy.break_listeners, what="the relay to listen")
    run.wait_for_effects(50)
