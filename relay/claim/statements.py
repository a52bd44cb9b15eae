"""The SQL of claims and looks, on PostgreSQL: one statement each.

Every statement starts where pending rows began when they were last seen: `(available_at, id) >=` a position.
"""

DISPATCHED = "status = 'dispatched', confirm_by = statement_timestamp() + %(confirm_timeout)s"
# With CONFIRM off the broker's word is the last one heard of a delivery.
SUCCEEDED = "status = 'succeeded', finished_at = statement_timestamp()"

# The name under which DUE_IN answers, beside those of handlers.
ANY = ""

# The rows in the order in which they are due; LIMIT bounds them, and what another relay holds is passed over.
_LOCKED = """
locked AS MATERIALIZED (
    SELECT id, event_id, handler, key, available_at FROM outbox_delivery
    WHERE status = 'pending' AND {of}
      AND (available_at, id) >= (%(due_at)s::timestamptz, %(id)s::bigint)
    ORDER BY available_at, id
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
)"""

_DUE = "held = '' AND available_at <= statement_timestamp() {where}"

_OF_BATCH = """held = 'batch' AND handler = %(handler)s
      AND available_at <= statement_timestamp() + %(wait)s"""

# Only as many as fit into the batch's bytes; the locks of the rest go with the transaction. OFFSET 0 has each
# event looked up by its id: of a table of some ten thousand rows the planner would rather read all of it.
_SIZED = """
sized AS (
    SELECT l.id, l.available_at, e.topic, e.key, e.payload, e.headers, e.created_at, e.version,
           sum(coalesce(pg_column_size(e.payload), 0)) OVER (ORDER BY l.available_at, l.id)
               - coalesce(pg_column_size(e.payload), 0) AS bytes_before
    FROM {source} l LEFT JOIN LATERAL (
        SELECT * FROM outbox_event WHERE id = l.event_id OFFSET 0
    ) AS e ON true
)"""

# By an array of ids, for the same reason as above.
_UPDATED = """
updated AS (
    UPDATE outbox_delivery SET
        {mark},
        attempts = least(attempts + 1, 32767),
        dispatched_at = statement_timestamp()
    WHERE id = ANY(ARRAY(SELECT id FROM sized WHERE bytes_before < %(max_bytes)s))
    RETURNING id, event_id, handler, queue, attempts, redeliveries, expires_at
)"""

# JSON and the event's id are asked for as text, so that nobody decodes them on their way to the broker. A
# delivery whose event is gone has an empty payload. What was dispatched before it expired may go again.
_MARKED = """
marked AS (
    SELECT d.id, d.event_id::text, d.handler, d.queue, coalesce(s.key, ''), d.attempts, d.redeliveries,
           coalesce(s.topic, ''), coalesce(s.payload::text, ''), coalesce(s.headers::text, ''),
           coalesce(s.created_at::text, ''),
           d.attempts = 1 AND coalesce(d.expires_at <= statement_timestamp(), false),
           -- The moment of them all, asked for once.
           (SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::bigint),
           coalesce(s.version, 1), false AS held
    FROM updated d JOIN sized s ON s.id = d.id
)"""

# Where the next claim is to start: at the first row that did not fit, or else at the last one.
_LAST = """
last AS (
    SELECT * FROM (
        (SELECT available_at, id FROM locked ORDER BY available_at DESC, id DESC LIMIT 1)
        UNION ALL
        (SELECT available_at, id FROM sized WHERE bytes_before >= %(max_bytes)s ORDER BY 1, 2 LIMIT 1)
    ) AS ends ORDER BY available_at, id LIMIT 1
)"""

# One more row, of what else the claim has to say, in the place of the payload. The timeout ends with the
# transaction, so that behind a connection pooler it is nobody else's.
_SEEN = """
SELECT 0, NULL, '', '', '', 0, 0, '', json_build_object(
           'rows', (SELECT count(*) FROM locked),
           'last', (
               SELECT json_build_array((extract(epoch FROM available_at) * 1000000)::bigint, id) FROM last
           ),
           'now_us', (extract(epoch FROM statement_timestamp()) * 1000000)::bigint,
           'paused', (SELECT array_agg(handler) FROM outbox_pausedhandler),
           'idle_limit', set_config('idle_in_transaction_session_timeout', %(idle_limit)s, true)
       )::text, '', '', false, 0, 0, NULL
"""


def _claim(locked: str, *between: str, source: str, found: str = "SELECT * FROM marked") -> str:
    sized = _SIZED.replace("{source}", source)
    parts = (_LOCKED.replace("{of}", locked), *between, sized, _UPDATED, _MARKED, _LAST)
    return f"WITH {', '.join(parts)} {found} UNION ALL {_SEEN}"


CLAIM = _claim(_DUE, source="locked")

# Half a batch runs only once its oldest row is due. Asked while the rows are locked, so that two relays
# cannot run half a batch each.
CLAIM_BATCH = _claim(
    _OF_BATCH,
    """
ripe AS (
    SELECT * FROM locked WHERE (
        SELECT count(*) >= %(limit)s OR min(available_at) <= statement_timestamp() FROM locked
    )
)""",
    source="ripe",
)

# A row behind an unfinished one of its lane is held, so that no later claim walks past it again. The relay
# looks at its lane once more after the commit, since the one before may have finished in the meantime.
CLAIM_LANES = _claim(
    _DUE,
    """
blocked AS MATERIALIZED (
    SELECT l.id FROM locked l
    WHERE EXISTS (
        SELECT 1 FROM outbox_delivery p
        WHERE p.handler = l.handler AND p.key = l.key AND p.key <> '' AND p.id < l.id
          AND p.status IN ('pending', 'dispatched', 'failed')
          AND (p.status <> 'failed' OR l.handler <> ALL(%(skipping)s::text[]))
    ) OR EXISTS (
        -- By an index of its own: a later one may have been sent, while this one was failed and then retried.
        SELECT 1 FROM outbox_delivery p
        WHERE p.handler = l.handler AND p.key = l.key AND p.key <> '' AND p.status = 'dispatched'
          AND p.id <> l.id
    )
)""",
    "first AS (SELECT * FROM locked l WHERE NOT EXISTS (SELECT 1 FROM blocked b WHERE b.id = l.id))",
    """
hold AS (
    UPDATE outbox_delivery d SET held = 'lane' FROM blocked b WHERE d.id = b.id
    RETURNING d.id, d.event_id::text, d.handler, d.queue, d.key, 0, 0, '', '', '', '', false, 0::bigint, 0,
              true
)""",
    source="first",
    found="SELECT * FROM marked UNION ALL SELECT * FROM hold",
)

# A handler, in how many seconds, and which row is the first, if any; the database's time.
DUE_IN = """
SELECT ''::text, extract(epoch FROM available_at - statement_timestamp())::float8,
       (extract(epoch FROM available_at) * 1000000)::bigint, id,
       (extract(epoch FROM statement_timestamp()) * 1000000)::bigint
FROM (SELECT) AS always LEFT JOIN LATERAL (
    SELECT available_at, id FROM outbox_delivery
    WHERE status = 'pending' AND held = '' {where}
      AND (available_at, id) >= (%(due_at)s::timestamptz, %(id)s::bigint)
    ORDER BY available_at, id LIMIT 1
) AS pending ON true
"""

# A held row is eligible once its event is due, and becomes due itself when it has waited for its batch.
RIPE_IN = """
SELECT rule.handler,
       CASE WHEN waiting.rows >= rule.size THEN 0.0
            ELSE extract(epoch FROM waiting.oldest - statement_timestamp()) END::float8,
       (extract(epoch FROM waiting.oldest) * 1000000)::bigint, waiting.first,
       (extract(epoch FROM statement_timestamp()) * 1000000)::bigint
FROM unnest(%(handlers)s::text[], %(sizes)s::integer[], %(waits)s::interval[],
            %(due_ats)s::timestamptz[], %(ids)s::bigint[]) AS rule(handler, size, wait, due_at, id)
CROSS JOIN LATERAL (
    SELECT count(*) AS rows, min(available_at) AS oldest,
           (array_agg(id ORDER BY available_at, id))[1] AS first
    FROM (
        SELECT available_at, id FROM outbox_delivery d
        WHERE d.status = 'pending' AND d.held = 'batch' AND d.handler = rule.handler
          AND d.available_at <= statement_timestamp() + rule.wait
          AND (d.available_at, d.id) >= (rule.due_at, rule.id)
        ORDER BY d.available_at, d.id LIMIT rule.size
    ) AS batch
) AS waiting
WHERE rule.handler NOT IN (SELECT handler FROM outbox_pausedhandler)
"""
