WITH outcome AS (
    SELECT id, event_id, 'succeeded' AS state, '' AS error, interval '0' AS wait, '' AS waits_for,
           '' AS message_options, '' AS result
    FROM unnest(%s::bigint[], %s::uuid[]) AS o(id, event_id)
    UNION ALL
    SELECT * FROM unnest(
        %s::bigint[], %s::uuid[], %s::text[], %s::text[], %s::interval[], %s::text[], %s::text[], %s::text[]
    )
), locked AS (
    SELECT d.id FROM outbox_delivery d JOIN outcome o USING (id, event_id)
    WHERE d.id = ANY(ARRAY(SELECT id FROM outcome))
      AND (d.state IN ('pending', 'dispatched') OR (d.state = 'failed' AND o.state = 'succeeded'))
    FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE outbox_delivery d SET
    state = o.state,
    error = CASE WHEN o.error = '' THEN d.error ELSE o.error END,
    waits_for = CASE WHEN o.state = 'pending' THEN o.waits_for ELSE d.waits_for END,
    available_at = CASE WHEN o.state = 'pending' THEN statement_timestamp() + o.wait ELSE d.available_at END,
    due_since = CASE WHEN o.state = 'pending' AND o.result = '' THEN coalesce(
        d.due_since,
        CASE d.state WHEN 'dispatched' THEN least(d.available_at, d.dispatched_at) ELSE d.available_at END
    ) END,
    confirm_by = NULL,
    finished_at = CASE WHEN o.state <> 'pending' THEN statement_timestamp() END,
    message_options = CASE WHEN o.message_options = '' THEN d.message_options
                           ELSE nullif(o.message_options::jsonb, '{}') END
FROM outcome o
WHERE d.id = o.id AND d.event_id = o.event_id AND d.id = ANY(ARRAY(SELECT id FROM locked))
RETURNING d.id, d.event_id
