WITH 
locked AS MATERIALIZED (
    SELECT id, event_id, handler, key, available_at FROM outbox_delivery
    WHERE status = 'pending' AND held = '' AND available_at <= statement_timestamp() AND key = '' 
    ORDER BY available_at, id
    LIMIT 500
    FOR NO KEY UPDATE SKIP LOCKED
), 
sized AS (
    SELECT l.id, e.topic, e.key, e.payload, e.headers, e.created_at,
           sum(coalesce(pg_column_size(e.payload), 0)) OVER (ORDER BY l.available_at, l.id)
               - coalesce(pg_column_size(e.payload), 0) AS bytes_before
    FROM locked l LEFT JOIN outbox_event e ON e.id = l.event_id
) 
UPDATE outbox_delivery d SET
    status = 'dispatched', confirm_by = statement_timestamp() + '1:00:00'::interval,
    attempts = least(d.attempts + 1, 32767),
    dispatched_at = statement_timestamp()
FROM sized s
WHERE d.id = s.id AND s.bytes_before < 16777216
RETURNING d.id, d.event_id, d.handler, d.queue, coalesce(s.key, ''), d.attempts, d.redeliveries,
          coalesce(s.topic, ''), coalesce(s.payload::text, ''), coalesce(s.headers::text, ''),
          coalesce(s.created_at::text, ''), coalesce(d.expires_at <= statement_timestamp(), false),
          (extract(epoch FROM d.dispatched_at) * 1000000)::bigint,
          false AS held, (SELECT count(*) FROM locked)

-- ----------------

WITH 
locked AS MATERIALIZED (
    SELECT id, event_id, handler, key, available_at FROM outbox_delivery
    WHERE status = 'pending' AND held = '' AND available_at <= statement_timestamp() AND key <> '' 
    ORDER BY available_at, id
    LIMIT 500
    FOR NO KEY UPDATE SKIP LOCKED
), blocked AS MATERIALIZED (
    SELECT l.id FROM locked l
    WHERE EXISTS (
        SELECT 1 FROM outbox_delivery p
        WHERE p.handler = l.handler AND p.key = l.key AND p.key <> '' AND p.id <> l.id
          AND (p.id < l.id OR p.status = 'dispatched')
          AND p.status IN ('pending', 'dispatched', 'failed')
          AND (p.status <> 'failed' OR l.handler <> ALL('{}'::text[]))
    )
), first AS (
    SELECT * FROM locked l WHERE NOT EXISTS (SELECT 1 FROM blocked b WHERE b.id = l.id)
), 
sized AS (
    SELECT l.id, e.topic, e.key, e.payload, e.headers, e.created_at,
           sum(coalesce(pg_column_size(e.payload), 0)) OVER (ORDER BY l.available_at, l.id)
               - coalesce(pg_column_size(e.payload), 0) AS bytes_before
    FROM first l LEFT JOIN outbox_event e ON e.id = l.event_id
), marked AS (
UPDATE outbox_delivery d SET
    status = 'dispatched', confirm_by = statement_timestamp() + '1:00:00'::interval,
    attempts = least(d.attempts + 1, 32767),
    dispatched_at = statement_timestamp()
FROM sized s
WHERE d.id = s.id AND s.bytes_before < 16777216
RETURNING d.id, d.event_id, d.handler, d.queue, coalesce(s.key, ''), d.attempts, d.redeliveries,
          coalesce(s.topic, ''), coalesce(s.payload::text, ''), coalesce(s.headers::text, ''),
          coalesce(s.created_at::text, ''), coalesce(d.expires_at <= statement_timestamp(), false),
          (extract(epoch FROM d.dispatched_at) * 1000000)::bigint,
          false AS held, (SELECT count(*) FROM locked)
), hold AS (
    UPDATE outbox_delivery d SET held = 'lane' FROM blocked b WHERE d.id = b.id
    RETURNING d.id, d.event_id, d.handler, d.queue, d.key, 0, 0, '', '', '', '', false, 0, true,
              (SELECT count(*) FROM locked)
)
SELECT * FROM marked UNION ALL SELECT * FROM hold
