"""Broker, worker and relay in one process, for a machine without Redis: `python -m example.demo.inprocess`.

Dramatiq's StubBroker keeps its messages in memory, so the relay and the worker must share a process. The web
processes only write rows and need no broker.
"""

import django


def main() -> None:
    """Run the relay in the main thread, where signals arrive, beside the threads of the worker."""
    django.setup()

    import dramatiq
    from django.core.management import call_command

    from example.shop import queues

    broker = dramatiq.get_broker()
    # The `dramatiq` command does the same in each worker process before it starts the worker.
    broker.emit_after("process_boot")
    worker = dramatiq.Worker(broker, worker_threads=8, queues=set(queues.ALL))
    worker.start()
    print("Worker threads are ready for action.", flush=True)
    try:
        call_command("run_relay")
    finally:
        # The worker stops after the relay, so that it finishes and reports all dispatched deliveries.
        worker.stop()


if __name__ == "__main__":
    main()
