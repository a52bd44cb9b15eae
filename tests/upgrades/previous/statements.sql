        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES ('01a216a1cdcf7e2893c138e4ce25a248'::uuid, 'upgrade.nobody', 'null'::jsonb, '',
                '{}', 1)
    

-- ----------------

        WITH new_event AS (
        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES ('01a216a1cdca7472bfff0feef5266536'::uuid, 'upgrade.event', '{"text":"naïve","n":[1,null]}'::jsonb, 'one',
                '{"tenant":"a"}'::jsonb, 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdca7472bfff0feef5266536'::uuid, 'upgrade_event', 'upgrades', '', '', statement_timestamp(), NULL)
    

-- ----------------

        WITH new_event AS (
        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES ('01a216a1cdcc77a68496002be0860156'::uuid, 'upgrade.event', '"delayed"'::jsonb, '',
                '{}', 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdcc77a68496002be0860156'::uuid, 'upgrade_event', 'upgrades', '', '', '2026-01-01 00:00:00+00:00'::timestamptz, NULL)
    

-- ----------------

        WITH new_event AS (
        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES ('01a216a1cdce791090fa3941de84c800'::uuid, 'upgrade.failing', 'null'::jsonb, '',
                '{}', 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdce791090fa3941de84c800'::uuid, 'upgrade_failing', 'upgrades', '', '', statement_timestamp() + '0:00:00.001000'::interval, NULL)
    

-- ----------------

        WITH new_event AS (
        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES ('01a216a1cdce7fffb4ef14b6ecaa36ca'::uuid, 'upgrade.event', '0'::jsonb, 'many-0',
                '{}', 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdce7fffb4ef14b6ecaa36ca'::uuid, 'upgrade_event', 'upgrades', '', '', statement_timestamp(), NULL)
    

-- ----------------

        WITH new_event AS (
        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES ('01a216a1cdd07e82ad0a45261aaa0a6b'::uuid, 'actor.upgrade_call', '{"args":[7],"kwargs":{"width":2}}'::jsonb, '',
                '{}', 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdd07e82ad0a45261aaa0a6b'::uuid, 'upgrade_call', 'upgrades', '', '', statement_timestamp(), NULL)
    

-- ----------------

        WITH new_event AS (
        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES ('01a216a1cdd2759b97a6065f472af221'::uuid, 'upgraded.testapp.order', '{"signal":"tests.upgrades.handlers.upgraded","snapshot_handlers":["upgrade_receiver"],"snapshots":{"sender":{"$":"class","v":"testapp.Order"},"order":{"$":"instance","model":"testapp.Order","database":null,"adding":true,"fields":{"id":41,"customer_id":null,"status":"paid","total":{"$":"decimal","v":"9.90"},"note":""}},"at":{"$":"datetime","v":"2026-01-01T00:00:00+00:00"},"token":{"$":"uuid","v":"00000000-0000-0000-0000-000000000001"},"amounts":{"net":{"$":"decimal","v":"1.50"},"wait":{"$":"timedelta","v":[0,60,0]}},"colour":{"$":"enum","v":"RED","path":"tests.upgrades.handlers:Colour"}}}'::jsonb, '',
                '{}', 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdd2759b97a6065f472af221'::uuid, 'upgrade_receiver', 'upgrades', '', '', statement_timestamp(), NULL)
    

-- ----------------

        WITH new_event AS (
        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES ('01a216a1cdd370fca4dc8aa9846cae0f'::uuid, 'upgrade.batch', '{"n":0}'::jsonb, '',
                '{}', 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdd370fca4dc8aa9846cae0f'::uuid, 'upgrade_batch', 'upgrades', '', 'batch', statement_timestamp() + '0:00:00.001000'::interval, NULL)
    

-- ----------------

        WITH new_event AS (
        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES ('01a216a1cdd4751796b64b210a1951a5'::uuid, 'upgrade.ordered', '0'::jsonb, 'key-1',
                '{}', 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdd4751796b64b210a1951a5'::uuid, 'upgrade_ordered', 'upgrades', 'key-1', '', statement_timestamp(), NULL)
    

-- ----------------

DELETE FROM outbox_delivery WHERE id = ANY(ARRAY(
    SELECT id FROM outbox_delivery
    WHERE event_id = ANY('{}'::uuid[]) AND (
        state IN ('succeeded', 'discarded')
        OR (state = 'failed' AND finished_at <= statement_timestamp() - '90 days 0:00:00'::interval)
    )
    FOR UPDATE SKIP LOCKED
))

-- ----------------

INSERT INTO outbox_handlerstats AS old
    (bucket, handler, dispatched, succeeded, retried, failed, duration_total_s, duration_max_s, histogram)
SELECT date_trunc('minute', statement_timestamp()), handler, dispatched, succeeded, retried, failed,
       duration_total_s, duration_max_s, histogram::integer[]
FROM unnest('{upgrade_ordered}'::text[], '{1}'::int2[]::integer[], '{1}'::int2[]::integer[], '{0}'::int2[]::integer[], '{0}'::int2[]::integer[], '{0.009348450000288722}'::float8[]::float8[],
            '{0.009348450000288722}'::float8[]::float8[], '{"{0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}"}'::text[])
    AS new(handler, dispatched, succeeded, retried, failed, duration_total_s, duration_max_s, histogram)
ON CONFLICT (bucket, handler) DO UPDATE SET
    dispatched = old.dispatched + excluded.dispatched,
    succeeded = old.succeeded + excluded.succeeded,
    retried = old.retried + excluded.retried,
    failed = old.failed + excluded.failed,
    duration_total_s = old.duration_total_s + excluded.duration_total_s,
    duration_max_s = greatest(old.duration_max_s, excluded.duration_max_s),
    histogram = (
        SELECT array_agg(coalesce(a, 0) + coalesce(b, 0) ORDER BY position)
        FROM unnest(old.histogram, excluded.histogram) WITH ORDINALITY AS pair(a, b, position)
    )

-- ----------------

SELECT rule.handler,
       CASE WHEN waiting.rows >= rule.size THEN 0.0
            ELSE extract(epoch FROM waiting.oldest - statement_timestamp()) END::float8,
       (extract(epoch FROM waiting.oldest) * 1000000)::bigint, waiting.first,
       (extract(epoch FROM statement_timestamp()) * 1000000)::bigint
FROM unnest('{upgrade_batch}'::text[], '{2}'::int2[]::integer[], '{0:00:00.001000}'::interval[]::interval[],
            '{-infinity}'::timestamptz[], '{0}'::int2[]::bigint[]) AS rule(handler, size, wait, due_at, id)
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

-- ----------------

WITH RECURSIVE head AS (
    (
        SELECT handler, key, state, waits_for, 1 AS number FROM outbox_delivery
        WHERE (handler, key) > ('', '') AND key <> '' AND state IN ('pending', 'dispatched', 'failed')
        ORDER BY handler, key, id LIMIT 1
    )
    UNION ALL
    SELECT later.*, head.number + 1 FROM head CROSS JOIN LATERAL (
        SELECT p.handler, p.key, p.state, p.waits_for FROM outbox_delivery p
        WHERE (p.handler, p.key) > (head.handler, head.key) AND p.key <> ''
          AND p.state IN ('pending', 'dispatched', 'failed')
        ORDER BY p.handler, p.key, p.id LIMIT 1
    ) AS later
    WHERE head.number < 1000
)
SELECT handler, key, number FROM head
WHERE number = 1000 OR state = 'failed' OR (state = 'pending' AND waits_for = 'key')
ORDER BY number

-- ----------------

WITH blocked AS MATERIALIZED (
    SELECT head.id FROM unnest('{upgrade_ordered}'::text[], '{key-1}'::text[]) AS asked(handler, key)
    CROSS JOIN LATERAL (
        SELECT p.id, p.state, p.waits_for FROM outbox_delivery p
        WHERE p.handler = asked.handler AND p.key = asked.key AND p.key <> ''
          AND p.state IN ('pending', 'dispatched', 'failed')
          AND (p.state <> 'failed' OR p.handler <> ALL('{}'::text[]))
        ORDER BY p.id LIMIT 1
    ) AS head
    LEFT JOIN LATERAL (
        SELECT true AS found FROM outbox_delivery p
        WHERE p.handler = asked.handler AND p.key = asked.key AND p.key <> '' AND p.state = 'dispatched'
        LIMIT 1
    ) AS sent ON true
    WHERE head.waits_for = 'key' AND head.state = 'pending' AND sent.found IS NULL
), free AS (
    SELECT d.id FROM outbox_delivery d
    WHERE d.id = ANY(ARRAY(SELECT id FROM blocked)) AND d.state = 'pending' AND d.waits_for = 'key'
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE outbox_delivery d SET
    waits_for = '', available_at = greatest(d.available_at, statement_timestamp()), due_since = NULL
WHERE d.id = ANY(ARRAY(SELECT id FROM free))

-- ----------------

WITH chunk AS MATERIALIZED (
    SELECT id FROM outbox_event WHERE id > '00000000000000000000000000000000'::uuid AND id < '01a1f2954a3c7b5c8000000000000000'::uuid ORDER BY id LIMIT 1000
), finished AS (
    SELECT e.id FROM outbox_event e
    WHERE e.id = ANY(ARRAY(SELECT id FROM chunk)) AND NOT EXISTS (
        SELECT FROM outbox_delivery d WHERE d.event_id = e.id AND (
            d.state IN ('pending', 'dispatched')
            OR (d.state = 'failed' AND d.finished_at > statement_timestamp() - '90 days 0:00:00'::interval)
        )
    )
    FOR UPDATE OF e SKIP LOCKED
)
SELECT (SELECT count(*) FROM chunk), (SELECT id FROM chunk ORDER BY id DESC LIMIT 1),
       ARRAY(SELECT id FROM finished)::text

-- ----------------

WITH finished AS MATERIALIZED (
    SELECT id FROM outbox_event e
    WHERE e.id = ANY('{}'::uuid[]) AND NOT EXISTS (SELECT FROM outbox_delivery d WHERE d.event_id = e.id)
), attempts AS (
    DELETE FROM outbox_taskattempt WHERE event_id = ANY(ARRAY(SELECT id FROM finished))
)
DELETE FROM outbox_event WHERE id = ANY(ARRAY(SELECT id FROM finished))

-- ----------------

WITH mine AS MATERIALIZED (
    SELECT id, event_id FROM unnest('{13}'::int2[]::bigint[], '{01a216a1-cdd4-7517-96b6-4b210a1951a5}'::uuid[]) AS asked(id, event_id)
    WHERE pg_try_advisory_xact_lock(
        uuid_hash_extended(event_id, hashint8extended(id, 'outbox_delivery'::regclass::oid::bigint))
    )
)
UPDATE outbox_delivery d SET state = 'succeeded', finished_at = statement_timestamp(), confirm_by = NULL
FROM mine WHERE d.id = ANY(ARRAY(SELECT id FROM mine)) AND d.id = mine.id AND d.event_id = mine.event_id
  AND d.state IN ('pending', 'dispatched')
RETURNING d.id, d.event_id::text

-- ----------------

WITH new_event AS (
    INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key, version)
    VALUES ('01a216a1cdcc7f73b3b3846b69e915f3'::uuid::uuid, 'upgrade.event', '', '"perishable"'::jsonb, '{}'::jsonb, 'once', 1)
    ON CONFLICT (topic, dedup_key) WHERE dedup_key IS NOT NULL DO NOTHING RETURNING id
), new_delivery AS (
    INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
    SELECT new_event.id, handler, queue, ordering_key, waits_for,
           coalesce(eta, statement_timestamp()) + wait,
           coalesce(expires_at, statement_timestamp() + expires_in)
    FROM new_event, unnest('{upgrade_event}'::text[], '{upgrades}'::text[], '{""}'::text[], '{""}'::text[], '{NULL}'::timestamptz[], '{0:00:00}'::interval[]::interval[],
                           '{NULL}'::timestamptz[], '{"365 days 0:00:00"}'::interval[]::interval[])
        WITH ORDINALITY AS new(handler, queue, ordering_key, waits_for, eta, wait, expires_at, expires_in,
                               position)
    ORDER BY position
)
SELECT count(*) FROM new_event

-- ----------------

WITH outcome AS (
    SELECT id, event_id, 'succeeded' AS state, '' AS error, interval '0' AS wait, '' AS waits_for,
           '' AS message_options, '' AS result
    FROM unnest('{11,12}'::bigint[], '{01a216a1-cdd3-70fc-a4dc-8aa9846cae0f,01a216a1-cdd3-7984-8f16-47ad750b5497}'::uuid[]) AS o(id, event_id)
    UNION ALL
    SELECT * FROM unnest(
        '{}'::bigint[], '{}'::uuid[], '{}'::text[], '{}'::text[], '{}'::interval[], '{}'::text[], '{}'::text[], '{}'::text[]
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

-- ----------------

DELETE FROM "outbox_pausedhandler" WHERE "outbox_pausedhandler"."handler" = 'upgrade_event'

-- ----------------

DELETE FROM "outbox_processheartbeat" WHERE "outbox_processheartbeat"."id" = '90444b27a6b64c4d987115f49bf1e08a'::uuid

-- ----------------

INSERT INTO "outbox_delivery" ("event_id", "available_at", "handler", "queue", "key", "waits_for", "error", "message_options", "due_since", "redeliveries", "resends", "refusals", "crashes", "expires_at", "attempts", "dispatched_at", "state", "confirm_by", "finished_at") VALUES ('01a216a1cdca7472bfff0feef5266536'::uuid, (STATEMENT_TIMESTAMP() + '0:00:00'::interval), 'upgrade_event', 'upgrades', '', '', DEFAULT, NULL, NULL, DEFAULT, DEFAULT, DEFAULT, DEFAULT, NULL, DEFAULT, NULL, DEFAULT, NULL, NULL), ('01a216a1cdcc77a68496002be0860156'::uuid, (STATEMENT_TIMESTAMP() + '0:00:00'::interval), 'upgrade_event', 'upgrades', '', '', DEFAULT, NULL, NULL, DEFAULT, DEFAULT, DEFAULT, DEFAULT, NULL, DEFAULT, NULL, DEFAULT, NULL, NULL), ('01a216a1cdcc7f73b3b3846b69e915f3'::uuid, (STATEMENT_TIMESTAMP() + '0:00:00'::interval), 'upgrade_event', 'upgrades', '', '', DEFAULT, NULL, NULL, DEFAULT, DEFAULT, DEFAULT, DEFAULT, NULL, DEFAULT, NULL, DEFAULT, NULL, NULL), ('01a216a1cdce7fffb4ef14b6ecaa36ca'::uuid, (STATEMENT_TIMESTAMP() + '0:00:00'::interval), 'upgrade_event', 'upgrades', '', '', DEFAULT, NULL, NULL, DEFAULT, DEFAULT, DEFAULT, DEFAULT, NULL, DEFAULT, NULL, DEFAULT, NULL, NULL), ('01a216a1cdcf704b8a6e802ea6372667'::uuid, (STATEMENT_TIMESTAMP() + '0:00:00'::interval), 'upgrade_event', 'upgrades', '', '', DEFAULT, NULL, NULL, DEFAULT, DEFAULT, DEFAULT, DEFAULT, NULL, DEFAULT, NULL, DEFAULT, NULL, NULL), ('01a216a1cdcf7088adf1c287fa65c715'::uuid, (STATEMENT_TIMESTAMP() + '0:00:00'::interval), 'upgrade_event', 'upgrades', '', '', DEFAULT, NULL, NULL, DEFAULT, DEFAULT, DEFAULT, DEFAULT, NULL, DEFAULT, NULL, DEFAULT, NULL, NULL) RETURNING "outbox_delivery"."id", "outbox_delivery"."available_at", "outbox_delivery"."key", "outbox_delivery"."waits_for", "outbox_delivery"."error", "outbox_delivery"."redeliveries", "outbox_delivery"."resends", "outbox_delivery"."refusals", "outbox_delivery"."crashes", "outbox_delivery"."attempts", "outbox_delivery"."state"

-- ----------------

INSERT INTO "outbox_pausedhandler" ("handler", "reason", "paused_at") VALUES ('upgrade_event', '', DEFAULT) RETURNING "outbox_pausedhandler"."reason", "outbox_pausedhandler"."paused_at"

-- ----------------

INSERT INTO "outbox_processheartbeat" ("id", "kind", "host", "pid", "version", "queues", "threads", "state", "state_since", "detail", "problems", "started_at", "seen_at", "last_dispatch_at", "dispatched") VALUES ('5f627f3127d543a29dc25ca03c93b29c'::uuid, 'worker', 'host', 12601, '0.1.0', 'default,outbox_test_default,outbox_test_other,upgrades', 4, 'running', DEFAULT, DEFAULT, '[]'::jsonb, DEFAULT, STATEMENT_TIMESTAMP(), NULL, DEFAULT) RETURNING "outbox_processheartbeat"."kind", "outbox_processheartbeat"."version", "outbox_processheartbeat"."queues", "outbox_processheartbeat"."threads", "outbox_processheartbeat"."state", "outbox_processheartbeat"."state_since", "outbox_processheartbeat"."detail", "outbox_processheartbeat"."started_at", "outbox_processheartbeat"."seen_at", "outbox_processheartbeat"."dispatched"

-- ----------------

INSERT INTO "outbox_processheartbeat" ("id", "kind", "host", "pid", "version", "queues", "threads", "state", "state_since", "detail", "problems", "started_at", "seen_at", "last_dispatch_at", "dispatched") VALUES ('6795a4bf951e4e03bbb81147510ca12d'::uuid, 'relay', 'host', 12601, '0.1.0', '', DEFAULT, 'running', DEFAULT, '', '[]'::jsonb, DEFAULT, STATEMENT_TIMESTAMP(), STATEMENT_TIMESTAMP(), 1) RETURNING "outbox_processheartbeat"."kind", "outbox_processheartbeat"."version", "outbox_processheartbeat"."queues", "outbox_processheartbeat"."threads", "outbox_processheartbeat"."state", "outbox_processheartbeat"."state_since", "outbox_processheartbeat"."detail", "outbox_processheartbeat"."started_at", "outbox_processheartbeat"."seen_at", "outbox_processheartbeat"."dispatched"

-- ----------------

SELECT "outbox_delivery"."event_id" AS "event_id", "outbox_delivery"."handler" AS "handler" FROM "outbox_delivery" WHERE "outbox_delivery"."event_id" IN ('01a216a1cdca7472bfff0feef5266536'::uuid, '01a216a1cdcc77a68496002be0860156'::uuid, '01a216a1cdcc7f73b3b3846b69e915f3'::uuid, '01a216a1cdce7fffb4ef14b6ecaa36ca'::uuid, '01a216a1cdcf704b8a6e802ea6372667'::uuid, '01a216a1cdcf7088adf1c287fa65c715'::uuid) ORDER BY "outbox_delivery"."id" ASC

-- ----------------

SELECT "outbox_delivery"."handler" AS "handler" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'failed' AND "outbox_delivery"."handler" > '') ORDER BY 1 ASC LIMIT 1

-- ----------------

SELECT "outbox_delivery"."handler" AS "handler" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'pending' AND "outbox_delivery"."due_since" IS NOT NULL AND "outbox_delivery"."waits_for" = '' AND "outbox_delivery"."handler" > '') ORDER BY 1 ASC LIMIT 1

-- ----------------

SELECT "outbox_delivery"."handler" AS "handler", "outbox_delivery"."state" AS "state" FROM "outbox_delivery" ORDER BY 1 ASC, "outbox_delivery"."id" ASC

-- ----------------

SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE "outbox_delivery"."state" = 'failed' ORDER BY 1 ASC LIMIT 1000

-- ----------------

SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'failed' AND "outbox_delivery"."id" > 4) ORDER BY 1 ASC LIMIT 1000

-- ----------------

SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'failed' AND NOT ("outbox_delivery"."key" = '')) ORDER BY "outbox_delivery"."handler" ASC, 1 ASC LIMIT 10000

-- ----------------

SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'pending' AND "outbox_delivery"."handler" = 'upgrade_event' AND "outbox_delivery"."waits_for" = 'resume') ORDER BY "outbox_delivery"."id" ASC LIMIT 1

-- ----------------

SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" IN ('pending', 'dispatched', 'failed') AND NOT ("outbox_delivery"."key" = '') AND "outbox_delivery"."handler" IN ('outbox.send_background', 'record', 'record_all', 'flaky', 'broken', 'filed', 'deadly', 'async_context', 'shipment_saved', 'shipment_deleted', 'paid_mail', 'paid_stock', 'paid_analytics', 'resize', 'upgrade_event', 'upgrade_failing', 'upgrade_batch', 'upgrade_call', 'upgrade_receiver')) ORDER BY "outbox_delivery"."handler" ASC, "outbox_delivery"."key" ASC, "outbox_delivery"."id" ASC LIMIT 1

-- ----------------

SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE (("outbox_delivery"."state" = 'pending' AND "outbox_delivery"."waits_for" = 'resume' AND NOT ("outbox_delivery"."handler" IN (SELECT U0."handler" AS "handler" FROM "outbox_pausedhandler" U0))) OR ("outbox_delivery"."state" = 'pending' AND "outbox_delivery"."waits_for" = 'batch' AND NOT ("outbox_delivery"."handler" IN ('upgrade_batch')))) ORDER BY "outbox_delivery"."handler" ASC, "outbox_delivery"."id" ASC LIMIT 1

-- ----------------

SELECT "outbox_delivery"."id" AS "pk", "outbox_delivery"."event_id" AS "event_id" FROM "outbox_delivery" WHERE ("outbox_delivery"."crashes" > 0 AND "outbox_delivery"."state" IN ('pending', 'dispatched', 'failed')) ORDER BY 1 DESC LIMIT 10000

-- ----------------

SELECT "outbox_event"."id" AS "pk" FROM "outbox_event" WHERE "outbox_event"."id" IN ('01a216a1cdca7472bfff0feef5266536'::uuid, '01a216a1cdcc77a68496002be0860156'::uuid, '01a216a1cdcc7f73b3b3846b69e915f3'::uuid, '01a216a1cdce7fffb4ef14b6ecaa36ca'::uuid, '01a216a1cdcf704b8a6e802ea6372667'::uuid, '01a216a1cdcf7088adf1c287fa65c715'::uuid) ORDER BY 1 ASC FOR NO KEY UPDATE

-- ----------------

SELECT "outbox_event"."id" AS "pk", "outbox_event"."topic" AS "topic", "outbox_event"."key" AS "key" FROM "outbox_event" WHERE ("outbox_event"."id" >= '01a2166ae0fa7bef8000000000000000'::uuid AND "outbox_event"."id" < '01a216a1cf7a7d338000000000000000'::uuid AND "outbox_event"."id" > '01a216a1cdd571f1b90fa8f294809735'::uuid) ORDER BY 1 ASC LIMIT 1000

-- ----------------

SELECT "outbox_event"."id" AS "pk", "outbox_event"."topic" AS "topic", "outbox_event"."key" AS "key" FROM "outbox_event" WHERE ("outbox_event"."id" >= '01a2166ae0fa7bef8000000000000000'::uuid AND "outbox_event"."id" < '01a216a1cf7a7d338000000000000000'::uuid) ORDER BY 1 ASC LIMIT 1000

-- ----------------

SELECT "outbox_event"."id", "outbox_event"."topic", "outbox_event"."key", "outbox_event"."dedup_key", "outbox_event"."payload", "outbox_event"."headers", "outbox_event"."created_at", "outbox_event"."version" FROM "outbox_event" ORDER BY "outbox_event"."id" ASC LIMIT 1

-- ----------------

SELECT "outbox_handlerstats"."handler" AS "handler", SUM("outbox_handlerstats"."dispatched") AS "merged_0", SUM("outbox_handlerstats"."succeeded") AS "merged_1", SUM("outbox_handlerstats"."retried") AS "merged_2", SUM("outbox_handlerstats"."failed") AS "merged_3", SUM("outbox_handlerstats"."duration_total_s") AS "merged_4", MAX("outbox_handlerstats"."duration_max_s") AS "merged_5", COALESCE(SUM(("outbox_handlerstats"."histogram")[0 + 1]), 0) AS "merged_6", COALESCE(SUM(("outbox_handlerstats"."histogram")[1 + 1]), 0) AS "merged_7", COALESCE(SUM(("outbox_handlerstats"."histogram")[2 + 1]), 0) AS "merged_8", COALESCE(SUM(("outbox_handlerstats"."histogram")[3 + 1]), 0) AS "merged_9", COALESCE(SUM(("outbox_handlerstats"."histogram")[4 + 1]), 0) AS "merged_10", COALESCE(SUM(("outbox_handlerstats"."histogram")[5 + 1]), 0) AS "merged_11", COALESCE(SUM(("outbox_handlerstats"."histogram")[6 + 1]), 0) AS "merged_12", COALESCE(SUM(("outbox_handlerstats"."histogram")[7 + 1]), 0) AS "merged_13", COALESCE(SUM(("outbox_handlerstats"."histogram")[8 + 1]), 0) AS "merged_14", COALESCE(SUM(("outbox_handlerstats"."histogram")[9 + 1]), 0) AS "merged_15", COALESCE(SUM(("outbox_handlerstats"."histogram")[10 + 1]), 0) AS "merged_16", COALESCE(SUM(("outbox_handlerstats"."histogram")[11 + 1]), 0) AS "merged_17", COALESCE(SUM(("outbox_handlerstats"."histogram")[12 + 1]), 0) AS "merged_18", COALESCE(SUM(("outbox_handlerstats"."histogram")[13 + 1]), 0) AS "merged_19", COALESCE(SUM(("outbox_handlerstats"."histogram")[14 + 1]), 0) AS "merged_20", COALESCE(SUM(("outbox_handlerstats"."histogram")[15 + 1]), 0) AS "merged_21", COALESCE(SUM(("outbox_handlerstats"."histogram")[16 + 1]), 0) AS "merged_22", COALESCE(SUM(("outbox_handlerstats"."histogram")[17 + 1]), 0) AS "merged_23", COALESCE(SUM(("outbox_handlerstats"."histogram")[18 + 1]), 0) AS "merged_24", COALESCE(SUM(("outbox_handlerstats"."histogram")[19 + 1]), 0) AS "merged_25", COALESCE(SUM(("outbox_handlerstats"."histogram")[20 + 1]), 0) AS "merged_26", COALESCE(SUM(("outbox_handlerstats"."histogram")[21 + 1]), 0) AS "merged_27", COALESCE(SUM(("outbox_handlerstats"."histogram")[22 + 1]), 0) AS "merged_28", COALESCE(SUM(("outbox_handlerstats"."histogram")[23 + 1]), 0) AS "merged_29", COALESCE(SUM(("outbox_handlerstats"."histogram")[24 + 1]), 0) AS "merged_30", COALESCE(SUM(("outbox_handlerstats"."histogram")[25 + 1]), 0) AS "merged_31", COALESCE(SUM(("outbox_handlerstats"."histogram")[26 + 1]), 0) AS "merged_32", COALESCE(SUM(("outbox_handlerstats"."histogram")[27 + 1]), 0) AS "merged_33", COALESCE(SUM(("outbox_handlerstats"."histogram")[28 + 1]), 0) AS "merged_34", COALESCE(SUM(("outbox_handlerstats"."histogram")[29 + 1]), 0) AS "merged_35", COALESCE(SUM(("outbox_handlerstats"."histogram")[30 + 1]), 0) AS "merged_36", COALESCE(SUM(("outbox_handlerstats"."histogram")[31 + 1]), 0) AS "merged_37", COALESCE(SUM(("outbox_handlerstats"."histogram")[32 + 1]), 0) AS "merged_38", COALESCE(SUM(("outbox_handlerstats"."histogram")[33 + 1]), 0) AS "merged_39", COALESCE(SUM(("outbox_handlerstats"."histogram")[34 + 1]), 0) AS "merged_40", COALESCE(SUM(("outbox_handlerstats"."histogram")[35 + 1]), 0) AS "merged_41", COALESCE(SUM(("outbox_handlerstats"."histogram")[36 + 1]), 0) AS "merged_42", COALESCE(SUM(("outbox_handlerstats"."histogram")[37 + 1]), 0) AS "merged_43", COALESCE(SUM(("outbox_handlerstats"."histogram")[38 + 1]), 0) AS "merged_44", COALESCE(SUM(("outbox_handlerstats"."histogram")[39 + 1]), 0) AS "merged_45", COALESCE(SUM(("outbox_handlerstats"."histogram")[40 + 1]), 0) AS "merged_46", COALESCE(SUM(("outbox_handlerstats"."histogram")[41 + 1]), 0) AS "merged_47", COALESCE(SUM(("outbox_handlerstats"."histogram")[42 + 1]), 0) AS "merged_48", COALESCE(SUM(("outbox_handlerstats"."histogram")[43 + 1]), 0) AS "merged_49", COALESCE(SUM(("outbox_handlerstats"."histogram")[44 + 1]), 0) AS "merged_50", COALESCE(SUM(("outbox_handlerstats"."histogram")[45 + 1]), 0) AS "merged_51", COALESCE(SUM(("outbox_handlerstats"."histogram")[46 + 1]), 0) AS "merged_52", COALESCE(SUM(("outbox_handlerstats"."histogram")[47 + 1]), 0) AS "merged_53", COALESCE(SUM(("outbox_handlerstats"."histogram")[48 + 1]), 0) AS "merged_54", COALESCE(SUM(("outbox_handlerstats"."histogram")[49 + 1]), 0) AS "merged_55", COALESCE(SUM(("outbox_handlerstats"."histogram")[50 + 1]), 0) AS "merged_56", COALESCE(SUM(("outbox_handlerstats"."histogram")[51 + 1]), 0) AS "merged_57", COALESCE(SUM(("outbox_handlerstats"."histogram")[52 + 1]), 0) AS "merged_58", COALESCE(SUM(("outbox_handlerstats"."histogram")[53 + 1]), 0) AS "merged_59", COALESCE(SUM(("outbox_handlerstats"."histogram")[54 + 1]), 0) AS "merged_60", COALESCE(SUM(("outbox_handlerstats"."histogram")[55 + 1]), 0) AS "merged_61", COALESCE(SUM(("outbox_handlerstats"."histogram")[56 + 1]), 0) AS "merged_62", COALESCE(SUM(("outbox_handlerstats"."histogram")[57 + 1]), 0) AS "merged_63" FROM "outbox_handlerstats" GROUP BY 1 ORDER BY 1 ASC

-- ----------------

SELECT "outbox_pausedhandler"."handler" AS "handler" FROM "outbox_pausedhandler"

-- ----------------

SELECT "outbox_pausedhandler"."handler", "outbox_pausedhandler"."reason", "outbox_pausedhandler"."paused_at" FROM "outbox_pausedhandler" WHERE "outbox_pausedhandler"."handler" = 'upgrade_event' LIMIT 21

-- ----------------

SELECT "outbox_pausedhandler"."handler", "outbox_pausedhandler"."reason", "outbox_pausedhandler"."paused_at", (STATEMENT_TIMESTAMP() - "outbox_pausedhandler"."paused_at") AS "paused_for" FROM "outbox_pausedhandler" ORDER BY "outbox_pausedhandler"."handler" ASC LIMIT 20

-- ----------------

SELECT "outbox_processheartbeat"."id", "outbox_processheartbeat"."kind", "outbox_processheartbeat"."host", "outbox_processheartbeat"."pid", "outbox_processheartbeat"."version", "outbox_processheartbeat"."queues", "outbox_processheartbeat"."threads", "outbox_processheartbeat"."state", "outbox_processheartbeat"."state_since", "outbox_processheartbeat"."detail", "outbox_processheartbeat"."problems", "outbox_processheartbeat"."started_at", "outbox_processheartbeat"."seen_at", "outbox_processheartbeat"."last_dispatch_at", "outbox_processheartbeat"."dispatched", (STATEMENT_TIMESTAMP() - "outbox_processheartbeat"."seen_at") AS "seen", (STATEMENT_TIMESTAMP() - "outbox_processheartbeat"."state_since") AS "since" FROM "outbox_processheartbeat" ORDER BY "outbox_processheartbeat"."seen_at" DESC, "outbox_processheartbeat"."id" ASC LIMIT 1000

-- ----------------

SELECT (STATEMENT_TIMESTAMP() - "outbox_delivery"."available_at") AS "age" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'pending' AND "outbox_delivery"."available_at" <= (STATEMENT_TIMESTAMP()) AND "outbox_delivery"."waits_for" = '') ORDER BY "outbox_delivery"."available_at" ASC, "outbox_delivery"."id" ASC LIMIT 1

-- ----------------

SELECT (STATEMENT_TIMESTAMP() - "outbox_delivery"."available_at") AS "age" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'pending' AND "outbox_delivery"."handler" = 'upgrade_batch' AND "outbox_delivery"."waits_for" = 'batch' AND "outbox_delivery"."available_at" <= (STATEMENT_TIMESTAMP() + '0:00:00.001000'::interval)) ORDER BY "outbox_delivery"."available_at" ASC, "outbox_delivery"."id" ASC LIMIT 1

-- ----------------

SELECT (STATEMENT_TIMESTAMP() - "outbox_delivery"."available_at") AS "age" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'pending' AND "outbox_delivery"."handler" = 'upgrade_batch' AND "outbox_delivery"."waits_for" = 'batch' AND "outbox_delivery"."available_at" <= (STATEMENT_TIMESTAMP() + '0:00:00.001000'::interval)) ORDER BY "outbox_delivery"."available_at" ASC, "outbox_delivery"."id" ASC LIMIT 1 OFFSET 1

-- ----------------

SELECT 1 AS "a" FROM "outbox_delivery" WHERE "outbox_delivery"."state" IN ('pending', 'dispatched') LIMIT 1

-- ----------------

SELECT 1 AS "a" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'dispatched' AND "outbox_delivery"."confirm_by" < (STATEMENT_TIMESTAMP())) LIMIT 1

-- ----------------

SELECT 1 AS "a" FROM "outbox_handlerstats" WHERE "outbox_handlerstats"."bucket" < (STATEMENT_TIMESTAMP() - '30 days 0:00:00'::interval) LIMIT 1

-- ----------------

SELECT 1 AS "a" FROM "outbox_processheartbeat" WHERE "outbox_processheartbeat"."seen_at" < (STATEMENT_TIMESTAMP() - '1 day 0:00:00'::interval) LIMIT 1

-- ----------------

SELECT COUNT("__col1") FILTER (WHERE "__col2" < (STATEMENT_TIMESTAMP())), COUNT("__col1") FILTER (WHERE "__col3" = 'default'), MAX("age") FILTER (WHERE "__col3" = 'default'), COUNT("__col1") FILTER (WHERE "__col3" = 'outbox_test_default'), MAX("age") FILTER (WHERE "__col3" = 'outbox_test_default'), COUNT("__col1") FILTER (WHERE "__col3" = 'outbox_test_other'), MAX("age") FILTER (WHERE "__col3" = 'outbox_test_other'), COUNT("__col1") FILTER (WHERE "__col3" = 'upgrades'), MAX("age") FILTER (WHERE "__col3" = 'upgrades'), COUNT("__col1") FILTER (WHERE NOT ("__col3" IN ('default', 'outbox_test_default', 'outbox_test_other', 'upgrades'))), MAX("age") FILTER (WHERE NOT ("__col3" IN ('default', 'outbox_test_default', 'outbox_test_other', 'upgrades'))) FROM (SELECT (STATEMENT_TIMESTAMP() - COALESCE("outbox_delivery"."due_since", CASE WHEN "outbox_delivery"."state" = 'dispatched' THEN LEAST("outbox_delivery"."available_at", COALESCE("outbox_delivery"."dispatched_at", "outbox_delivery"."available_at")) ELSE "outbox_delivery"."available_at" END)) AS "age", "outbox_delivery"."id" AS "__col1", "outbox_delivery"."confirm_by" AS "__col2", "outbox_delivery"."queue" AS "__col3" FROM "outbox_delivery" WHERE "outbox_delivery"."state" = 'dispatched' ORDER BY "outbox_delivery"."confirm_by" ASC LIMIT 100000) subquery

-- ----------------

SELECT COUNT("__col1") FILTER (WHERE "__col2" IS NULL) FROM (SELECT "outbox_delivery"."id" AS "__col1", "outbox_delivery"."due_since" AS "__col2" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'pending' AND "outbox_delivery"."available_at" > (STATEMENT_TIMESTAMP()) AND "outbox_delivery"."waits_for" = '') ORDER BY "outbox_delivery"."available_at" ASC, "outbox_delivery"."id" ASC LIMIT 100000) subquery

-- ----------------

SELECT COUNT(*) FROM (SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE "outbox_delivery"."state" = 'failed' LIMIT 100000) subquery

-- ----------------

SELECT COUNT(*) FROM (SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'failed' AND "outbox_delivery"."handler" = 'upgrade_call') LIMIT 10000) subquery

-- ----------------

SELECT COUNT(*) FROM (SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'pending' AND "outbox_delivery"."available_at" <= (STATEMENT_TIMESTAMP()) AND "outbox_delivery"."waits_for" = '') LIMIT 100000) subquery

-- ----------------

SELECT COUNT(*) FROM (SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'pending' AND "outbox_delivery"."due_since" IS NOT NULL AND "outbox_delivery"."waits_for" = '') LIMIT 100000) subquery

-- ----------------

SELECT COUNT(*) FROM (SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'pending' AND NOT ("outbox_delivery"."waits_for" = '')) LIMIT 100000) subquery

-- ----------------

SELECT DISTINCT "outbox_delivery"."handler" AS "handler", "outbox_delivery"."key" AS "key" FROM "outbox_delivery" WHERE ("outbox_delivery"."event_id" = '01a216a1cdca7472bfff0feef5266536'::uuid AND "outbox_delivery"."state" = 'pending' AND "outbox_delivery"."state" IN ('failed', 'pending') AND NOT ("outbox_delivery"."key" = ''))

-- ----------------

SELECT DISTINCT "outbox_delivery"."handler" AS "handler", "outbox_delivery"."key" AS "key" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" IN ('failed', 'pending') AND NOT ("outbox_delivery"."key" = ''))

-- ----------------

SELECT MAX("age") FILTER (WHERE ("__col1" = 'batch' AND NOT ("__col2" IN ('upgrade_batch')))) FROM (SELECT (STATEMENT_TIMESTAMP() - "outbox_delivery"."available_at") AS "age", "outbox_delivery"."waits_for" AS "__col1", "outbox_delivery"."handler" AS "__col2" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'pending' AND NOT ("outbox_delivery"."waits_for" = '')) ORDER BY "outbox_delivery"."handler" ASC, "outbox_delivery"."id" ASC LIMIT 100000) subquery

-- ----------------

SELECT MAX("age") FROM (SELECT (STATEMENT_TIMESTAMP() - "outbox_delivery"."due_since") AS "age" FROM "outbox_delivery" WHERE ("outbox_delivery"."state" = 'pending' AND "outbox_delivery"."due_since" IS NOT NULL AND "outbox_delivery"."waits_for" = '') ORDER BY "outbox_delivery"."handler" ASC, "outbox_delivery"."due_since" ASC LIMIT 100000) subquery

-- ----------------

SELECT STATEMENT_TIMESTAMP() AS "now" FROM "outbox_event" ORDER BY "outbox_event"."id" ASC LIMIT 1

-- ----------------

SELECT SUM("outbox_handlerstats"."succeeded") AS "sum" FROM "outbox_handlerstats" WHERE ("outbox_handlerstats"."handler" IN ('outbox.send_background', 'record', 'record_all', 'flaky', 'broken', 'filed', 'deadly', 'async_context', 'shipment_saved', 'shipment_deleted', 'paid_mail', 'paid_stock', 'paid_analytics', 'resize', 'upgrade_event', 'upgrade_failing', 'upgrade_batch', 'upgrade_ordered', 'upgrade_call', 'upgrade_receiver') AND "outbox_handlerstats"."bucket" >= (DATE_TRUNC('minute', STATEMENT_TIMESTAMP() AT TIME ZONE 'UTC') - '0:01:00'::interval) AND "outbox_handlerstats"."bucket" < (DATE_TRUNC('minute', STATEMENT_TIMESTAMP() AT TIME ZONE 'UTC')))

-- ----------------

UPDATE "outbox_delivery" SET "state" = 'discarded', "finished_at" = STATEMENT_TIMESTAMP(), "confirm_by" = NULL, "error" = CASE WHEN ("outbox_delivery"."error" = '') THEN 'cancelled' ELSE (COALESCE('cancelled

', '') || COALESCE("outbox_delivery"."error", '')) END WHERE ("outbox_delivery"."event_id" = '01a216a1cdca7472bfff0feef5266536'::uuid AND "outbox_delivery"."state" = 'pending' AND "outbox_delivery"."state" IN ('failed', 'pending'))

-- ----------------

UPDATE "outbox_delivery" SET "state" = 'discarded', "finished_at" = STATEMENT_TIMESTAMP(), "confirm_by" = NULL, "error" = CASE WHEN ("outbox_delivery"."error" = '') THEN 'enough' ELSE (COALESCE('enough

', '') || COALESCE("outbox_delivery"."error", '')) END WHERE "outbox_delivery"."state" IN ('failed', 'pending')

-- ----------------

UPDATE "outbox_delivery" SET "state" = 'pending', "available_at" = STATEMENT_TIMESTAMP(), "due_since" = NULL, "waits_for" = '', "attempts" = 0, "refusals" = 0, "redeliveries" = 0, "crashes" = 0, "expires_at" = NULL, "resends" = LEAST(("outbox_delivery"."resends" + 1), 32767), "finished_at" = NULL, "confirm_by" = NULL, "message_options" = NULL WHERE ("outbox_delivery"."id" IN (4) AND "outbox_delivery"."state" = 'failed')

-- ----------------

UPDATE "outbox_delivery" SET "state" = 'pending', "redeliveries" = 1 WHERE "outbox_delivery"."state" = 'dispatched'

-- ----------------

UPDATE "outbox_processheartbeat" SET "seen_at" = STATEMENT_TIMESTAMP(), "state_since" = CASE WHEN ("outbox_processheartbeat"."state" = 'running') THEN "outbox_processheartbeat"."state_since" ELSE STATEMENT_TIMESTAMP() END, "state" = 'running', "detail" = '', "dispatched" = 1, "problems" = '[]'::jsonb, "last_dispatch_at" = STATEMENT_TIMESTAMP(), "kind" = 'relay', "queues" = '', "host" = 'host', "pid" = 12601, "version" = '0.1.0' WHERE "outbox_processheartbeat"."id" = '6795a4bf951e4e03bbb81147510ca12d'::uuid

-- ----------------

UPDATE "outbox_processheartbeat" SET "seen_at" = STATEMENT_TIMESTAMP(), "state_since" = CASE WHEN ("outbox_processheartbeat"."state" = 'running') THEN "outbox_processheartbeat"."state_since" ELSE STATEMENT_TIMESTAMP() END, "state" = 'running', "kind" = 'worker', "queues" = 'default,outbox_test_default,outbox_test_other,upgrades', "threads" = 4, "host" = 'host', "pid" = 12601, "version" = '0.1.0' WHERE "outbox_processheartbeat"."id" = '5f627f3127d543a29dc25ca03c93b29c'::uuid

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

-- ----------------

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
    WHERE state = 'pending' AND waits_for = 'batch' AND handler = 'upgrade_batch'
      AND available_at <= statement_timestamp() + '0:00:00.001000'::interval
      AND (available_at, id) >= ('2026-11-26T06:53:51.563105+00:00'::timestamptz, 0::bigint)
    ORDER BY available_at, id
    LIMIT 2
    FOR NO KEY UPDATE SKIP LOCKED
), 
ready AS (
    SELECT * FROM locked WHERE (
        SELECT count(*) >= 2 OR min(available_at) <= statement_timestamp() FROM locked
    )
), 
sized AS (
    SELECT l.id, l.available_at, e.topic, e.key, e.payload, e.headers, e.created_at, e.version,
           sum(coalesce(octet_length(e.payload) + octet_length(e.headers), 0))
               OVER (ORDER BY l.available_at, l.id)
               - coalesce(octet_length(e.payload) + octet_length(e.headers), 0) AS bytes_before
    FROM ready l LEFT JOIN LATERAL (
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
