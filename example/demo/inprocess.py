"""Broker, worker and relay in one process, for a machine without Redis: `python -m example.demo.inprocess`.

Dramatiq's StubBroker keeps its messages in memory, so the relay that fills it and the worker that empties it
must share a process. The web processes need nothing of it: they only write rows.
"""

import django


def main() -> None:
    """Run the relay in the main thread, where signals arrive, and the worker's threads beside it."""
    django.setup()

    import dramatiq
    from django.core.management import call_command

    from example.shop import queues

    broker = dramatiq.get_broker()
    # What Dramatiq's own command does in each worker process before it starts the worker.
    broker.emit_after("process_boot")
    worker = dramatiq.Worker(broker, worker_threads=8, queues=set(queues.ALL))
    worker.start()
    print("Worker threads are ready for action.", flush=True)
    try:
        call_command("run_relay")
    finally:
        # After the relay: the worker finishes what the relay has handed over, and reports it.
        worker.stop()


if __name__ == "__main__":
    main()
