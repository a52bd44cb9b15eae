WITH 
locked AS MATERIALIZED (
    SELECT id, event_id, handler, key, available_at FROM outbox_delivery
    WHERE state = 'pending' AND waits_for = '' AND available_at <= statement_timestamp() AND key = '' 
      AND (available_at, id) >= ('-infinity'::timestamptz, 0::bigint)
    ORDER BY available_at, id
    LIMIT 500
    FOR NO KEY UPDATE SKIP LOCKED
), 
sized AS (
    SELECT l.id, l.available_at, e.topic, e.key, e.payload, e.headers, e.created_at, e.version,
           sum(coalesce(octet_length(e.payload) + octet_length(e.headers), 0))
               OVER (ORDER BY l.available_at, l.id)
               - coalesce(octet_length(e.payload) + octet_length(e.headers), 0) AS bytes_before
    FROM locked l LEFT JOIN LATERAL (
        SELECT topic, key, payload::text, headers::text, created_at, version
        FROM outbox_event WHERE id = l.event_id OFFSET 0
    ) AS e ON true
), 
updated AS (
    UPDATE outbox_delivery SET
        state = 'dispatched',
        confirm_by = statement_timestamp() + '1:00:00'::interval,
        attempts = least(attempts + 1, 32767),
        dispatched_at = statement_timestamp()
    WHERE id = ANY(ARRAY(SELECT id FROM sized WHERE bytes_before < 8388608))
    RETURNING id, event_id, handler, queue, attempts, redeliveries, resends, expires_at, message_options
), 
marked AS (
    SELECT d.id, d.event_id::text, d.handler, d.queue, coalesce(s.key, ''), d.attempts, d.redeliveries,
           d.resends, coalesce(s.topic, ''), coalesce(s.payload::text, ''), coalesce(s.headers::text, ''),
           coalesce(s.created_at::text, ''),
           d.attempts = 1 AND coalesce(d.expires_at <= statement_timestamp(), false),
           -- The same moment for all rows, computed once.
           (SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::bigint),
           coalesce(s.version, 1), coalesce(d.message_options::text, ''), false AS blocked
    FROM updated d JOIN sized s ON s.id = d.id
), 
last AS (
    SELECT * FROM (
        (SELECT available_at, id FROM locked ORDER BY available_at DESC, id DESC LIMIT 1)
        UNION ALL
        (SELECT available_at, id FROM sized WHERE bytes_before >= 8388608 ORDER BY 1, 2 LIMIT 1)
    ) AS ends ORDER BY available_at, id LIMIT 1
) SELECT * FROM marked UNION ALL 
SELECT 0, NULL, '', '', '', 0, 0, 0, '', json_build_object(
           'rows', (SELECT count(*) FROM locked),
           'last', (
               SELECT json_build_array((extract(epoch FROM available_at) * 1000000)::bigint, id) FROM last
           ),
           'now_us', (extract(epoch FROM statement_timestamp()) * 1000000)::bigint,
           'paused', (SELECT array_agg(handler) FROM outbox_pausedhandler),
           'idle_limit', set_config('idle_in_transaction_session_timeout', '30000ms', true)
       )::text, '', '', false, 0, 0, '', NULL

-- ----------------

WITH 
locked AS MATERIALIZED (
    SELECT id, event_id, handler, key, available_at FROM outbox_delivery
    WHERE state = 'pending' AND waits_for = '' AND available_at <= statement_timestamp() AND key <> '' 
      AND (available_at, id) >= ('-infinity'::timestamptz, 0::bigint)
    ORDER BY available_at, id
    LIMIT 500
    FOR NO KEY UPDATE SKIP LOCKED
), 
behind AS MATERIALIZED (
    SELECT l.id FROM locked l
    WHERE EXISTS (
        SELECT 1 FROM outbox_delivery p
        WHERE p.handler = l.handler AND p.key = l.key AND p.key <> '' AND p.id < l.id
          AND p.state IN ('pending', 'dispatched', 'failed')
          AND (p.state <> 'failed' OR l.handler <> ALL('{}'::text[]))
    ) OR EXISTS (
        -- Through its own index. A later delivery may be dispatched when this one failed and was retried.
        SELECT 1 FROM outbox_delivery p
        WHERE p.handler = l.handler AND p.key = l.key AND p.key <> '' AND p.state = 'dispatched'
          AND p.id <> l.id
    )
), first AS (SELECT * FROM locked l WHERE NOT EXISTS (SELECT 1 FROM behind b WHERE b.id = l.id)), 
blocked AS (
    UPDATE outbox_delivery d SET waits_for = 'key' FROM behind b WHERE d.id = b.id
    RETURNING d.id, d.event_id::text, d.handler, d.queue, d.key, 0, 0, 0, '', '', '', '', false, 0::bigint, 0,
              '', true
), 
sized AS (
    SELECT l.id, l.available_at, e.topic, e.key, e.payload, e.headers, e.created_at, e.version,
           sum(coalesce(octet_length(e.payload) + octet_length(e.headers), 0))
               OVER (ORDER BY l.available_at, l.id)
               - coalesce(octet_length(e.payload) + octet_length(e.headers), 0) AS bytes_before
    FROM first l LEFT JOIN LATERAL (
        SELECT topic, key, payload::text, headers::text, created_at, version
        FROM outbox_event WHERE id = l.event_id OFFSET 0
    ) AS e ON true
), 
updated AS (
    UPDATE outbox_delivery SET
        state = 'dispatched',
        confirm_by = statement_timestamp() + '1:00:00'::interval,
        attempts = least(attempts + 1, 32767),
        dispatched_at = statement_timestamp()
    WHERE id = ANY(ARRAY(SELECT id FROM sized WHERE bytes_before < 8388608))
    RETURNING id, event_id, handler, queue, attempts, redeliveries, resends, expires_at, message_options
), 
marked AS (
    SELECT d.id, d.event_id::text, d.handler, d.queue, coalesce(s.key, ''), d.attempts, d.redeliveries,
           d.resends, coalesce(s.topic, ''), coalesce(s.payload::text, ''), coalesce(s.headers::text, ''),
           coalesce(s.created_at::text, ''),
           d.attempts = 1 AND coalesce(d.expires_at <= statement_timestamp(), false),
           -- The same moment for all rows, computed once.
           (SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::bigint),
           coalesce(s.version, 1), coalesce(d.message_options::text, ''), false AS blocked
    FROM updated d JOIN sized s ON s.id = d.id
), 
last AS (
    SELECT * FROM (
        (SELECT available_at, id FROM locked ORDER BY available_at DESC, id DESC LIMIT 1)
        UNION ALL
        (SELECT available_at, id FROM sized WHERE bytes_before >= 8388608 ORDER BY 1, 2 LIMIT 1)
    ) AS ends ORDER BY available_at, id LIMIT 1
) SELECT * FROM marked UNION ALL SELECT * FROM blocked UNION ALL 
SELECT 0, NULL, '', '', '', 0, 0, 0, '', json_build_object(
           'rows', (SELECT count(*) FROM locked),
           'last', (
               SELECT json_build_array((extract(epoch FROM available_at) * 1000000)::bigint, id) FROM last
           ),
           'now_us', (extract(epoch FROM statement_timestamp()) * 1000000)::bigint,
           'paused', (SELECT array_agg(handler) FROM outbox_pausedhandler),
           'idle_limit', set_config('idle_in_transaction_session_timeout', '30000ms', true)
       )::text, '', '', false, 0, 0, '', NULL
