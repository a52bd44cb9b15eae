"""The SQL of claims, and of checks for due deliveries, on PostgreSQL: one statement each.

Every statement scans from a position: `(available_at, id) >=` where pending rows began in an earlier scan.
"""

# The name of the row of DUE_IN, beside the names of batch handlers.
ANY = ""

# The rows in the order of their due times. LIMIT bounds them; rows that another relay has locked are skipped.
_LOCKED = """
locked AS MATERIALIZED (
    SELECT id, event_id, handler, key, available_at FROM outbox_delivery
    WHERE state = 'pending' AND {of}
      AND (available_at, id) >= (%(due_at)s::timestamptz, %(id)s::bigint)
    ORDER BY available_at, id
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
)"""

_DUE = "waits_for = '' AND available_at <= statement_timestamp() {where}"

_OF_BATCH = """waits_for = 'batch' AND handler = %(handler)s
      AND available_at <= statement_timestamp() + %(wait)s"""

# Only the rows whose text fits into the batch's bytes; the locks of the others end with the transaction. The
# size of jsonb in the table would not do, since it may be compressed. The text is made only once. OFFSET 0
# makes the planner look each event up by its id: in a table of some ten thousand rows it would read them all.
_SIZED = """
sized AS (
    SELECT l.id, l.available_at, e.topic, e.key, e.payload, e.headers, e.created_at, e.version,
           sum(coalesce(octet_length(e.payload) + octet_length(e.headers), 0))
               OVER (ORDER BY l.available_at, l.id)
               - coalesce(octet_length(e.payload) + octet_length(e.headers), 0) AS bytes_before
    FROM {source} l LEFT JOIN LATERAL (
        SELECT topic, key, payload::text, headers::text, created_at, version
        FROM outbox_event WHERE id = l.event_id OFFSET 0
    ) AS e ON true
)"""

# An array of ids makes the planner look the rows up by id, as OFFSET 0 does above.
_UPDATED = """
updated AS (
    UPDATE outbox_delivery SET
        state = 'dispatched',
        confirm_by = statement_timestamp() + %(confirm_timeout)s,
        attempts = least(attempts + 1, 32767),
        owner = NULL,
        dispatched_at = statement_timestamp()
    WHERE id = ANY(ARRAY(SELECT id FROM sized WHERE bytes_before < %(max_bytes)s))
    RETURNING
        id, event_id, handler, queue, attempts, redeliveries, resends, expires_at, message_options, replayed
)"""

# JSON and the event's id are read as text, since nothing decodes them on the way to the broker. A delivery
# whose event is missing has an empty payload. An event only expires before its first dispatch.
_MARKED = """
marked AS (
    SELECT d.id, d.event_id::text, d.handler, d.queue, coalesce(s.key, ''), d.attempts, d.redeliveries,
           d.resends, coalesce(s.topic, ''), coalesce(s.payload::text, ''), coalesce(s.headers::text, ''),
           coalesce(s.created_at::text, ''),
           d.attempts = 1 AND coalesce(d.expires_at <= statement_timestamp(), false),
           -- The same moment for all rows, computed once.
           (SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::bigint),
           coalesce(s.version, 1), coalesce(d.message_options::text, ''), d.replayed,
           false AS blocked
    FROM updated d JOIN sized s ON s.id = d.id
)"""

# Where the next claim starts: at the first row that did not fit, or else at the last row.
_LAST = """
last AS (
    SELECT * FROM (
        (SELECT available_at, id FROM locked ORDER BY available_at DESC, id DESC LIMIT 1)
        UNION ALL
        (SELECT available_at, id FROM sized WHERE bytes_before >= %(max_bytes)s ORDER BY 1, 2 LIMIT 1)
    ) AS ends ORDER BY available_at, id LIMIT 1
)"""

# One more row, with the claim's summary in place of the payload. The timeout ends with the transaction, so
# that behind a connection pooler it affects no other client.
_SUMMARY = """
SELECT 0, NULL, '', '', '', 0, 0, 0, '', json_build_object(
           'rows', (SELECT count(*) FROM locked),
           'last', (
               SELECT json_build_array((extract(epoch FROM available_at) * 1000000)::bigint, id) FROM last
           ),
           'now_us', (extract(epoch FROM statement_timestamp()) * 1000000)::bigint,
           'paused', (SELECT array_agg(handler) FROM outbox_pausedhandler),
           'idle_limit', set_config('idle_in_transaction_session_timeout', %(idle_limit)s, true)
       )::text, '', '', false, 0, 0, '', false, NULL
"""


def _claim(locked: str, *between: str, source: str, found: str = "SELECT * FROM marked") -> str:
    sized = _SIZED.replace("{source}", source)
    parts = (_LOCKED.replace("{of}", locked), *between, sized, _UPDATED, _MARKED, _LAST)
    return f"WITH {', '.join(parts)} {found} UNION ALL {_SUMMARY}"


CLAIM = _claim(_DUE, source="locked")

# A batch that is not full is ready once its oldest row is due. The condition is checked while the rows are
# locked: two relays cannot dispatch half a batch each.
CLAIM_BATCH = _claim(
    _OF_BATCH,
    """
ready AS (
    SELECT * FROM locked WHERE (
        SELECT count(*) >= %(limit)s OR min(available_at) <= statement_timestamp() FROM locked
    )
)""",
    source="ready",
)

# A row behind an unfinished one of its ordering key is blocked, so that no later claim reads it again. The
# relay checks the key once more after the commit: the earlier delivery may have finished in the meantime.
CLAIM_ORDERED = _claim(
    _DUE,
    """
behind AS MATERIALIZED (
    SELECT l.id FROM locked l
    WHERE EXISTS (
        SELECT 1 FROM outbox_delivery p
        WHERE p.handler = l.handler AND p.key = l.key AND p.key <> '' AND p.id < l.id
          AND p.state IN ('pending', 'dispatched', 'failed')
          AND (p.state <> 'failed' OR l.handler <> ALL(%(skipping)s::text[]))
    ) OR EXISTS (
        -- Through its own index. A later delivery may be dispatched when this one failed and was retried.
        SELECT 1 FROM outbox_delivery p
        WHERE p.handler = l.handler AND p.key = l.key AND p.key <> '' AND p.state = 'dispatched'
          AND p.id <> l.id
    )
)""",
    "first AS (SELECT * FROM locked l WHERE NOT EXISTS (SELECT 1 FROM behind b WHERE b.id = l.id))",
    """
blocked AS (
    UPDATE outbox_delivery d SET waits_for = 'key' FROM behind b WHERE d.id = b.id
    RETURNING d.id, d.event_id::text, d.handler, d.queue, d.key, 0, 0, 0, '', '', '', '', false, 0::bigint, 0,
              '', false, true
)""",
    source="first",
    found="SELECT * FROM marked UNION ALL SELECT * FROM blocked",
)

# Returns: handler, in how many seconds, due time and id of the first row (if any), the database's time.
DUE_IN = """
SELECT ''::text, extract(epoch FROM available_at - statement_timestamp())::float8,
       (extract(epoch FROM available_at) * 1000000)::bigint, id,
       (extract(epoch FROM statement_timestamp()) * 1000000)::bigint
FROM (SELECT) AS always LEFT JOIN LATERAL (
    SELECT available_at, id FROM outbox_delivery
    WHERE state = 'pending' AND waits_for = '' {where}
      AND (available_at, id) >= (%(due_at)s::timestamptz, %(id)s::bigint)
    ORDER BY available_at, id LIMIT 1
) AS pending ON true
"""

# A delivery counts for a batch once its event is due. It becomes due itself after its wait for the batch.
READY_IN = """
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
        WHERE d.state = 'pending' AND d.waits_for = 'batch' AND d.handler = rule.handler
          AND d.available_at <= statement_timestamp() + rule.wait
          AND (d.available_at, d.id) >= (rule.due_at, rule.id)
        ORDER BY d.available_at, d.id LIMIT rule.size
    ) AS batch
) AS waiting
WHERE rule.handler NOT IN (SELECT handler FROM outbox_pausedhandler)
"""
