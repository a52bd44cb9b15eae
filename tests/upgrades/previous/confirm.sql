WITH outcome AS (
    SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::interval[]) AS o(id, status, error, wait)
), locked AS (
    SELECT d.id FROM outbox_delivery d JOIN outcome o USING (id)
    WHERE d.status IN ('pending', 'dispatched') OR (d.status = 'failed' AND o.status = 'succeeded')
    FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE outbox_delivery d SET
    status = o.status,
    error = CASE WHEN o.error = '' THEN d.error ELSE o.error END,
    held = CASE WHEN o.status = 'pending' THEN '' ELSE d.held END,
    available_at = CASE WHEN o.status = 'pending' THEN statement_timestamp() + o.wait ELSE d.available_at END,
    confirm_by = CASE WHEN o.status = 'dispatched' THEN statement_timestamp() + o.wait + %s END,
    finished_at = CASE WHEN o.status IN ('pending', 'dispatched') THEN NULL ELSE statement_timestamp() END
FROM outcome o JOIN locked USING (id)
WHERE d.id = o.id
RETURNING d.id
