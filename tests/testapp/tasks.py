"""A Dramatiq actor whose messages join the transaction."""

import dramatiq

from outbox import TransactionalActor, current_event

from .handlers import QUEUE
from .models import Effect


@dramatiq.actor(actor_class=TransactionalActor, actor_name="resize", queue_name=QUEUE)
def resize(photo_id: int, *, width: int = 100) -> None:
    event = current_event()
    Effect.objects.create(
        handler="resize", key=str(photo_id), event_id=event.id if event else None, detail={"width": width}
    )
