INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f278527d10aa61cedf3df018a6'::uuid, 'upgrade.nobody', '', 'null'::jsonb, '{}'::jsonb, NULL)

-- ----------------

INSERT INTO outbox_handlerstats AS old
    (bucket, handler, dispatched, succeeded, retried, failed, duration_total_s, duration_max_s, histogram)
SELECT date_trunc('minute', statement_timestamp()), handler, dispatched, succeeded, retried, failed,
       duration_total_s, duration_max_s, histogram::integer[]
FROM unnest('{upgrade_lane}'::text[], '{0}'::int2[]::integer[], '{1}'::int2[]::integer[], '{0}'::int2[]::integer[], '{0}'::int2[]::integer[], '{0.024624470000162546}'::float8[]::float8[],
            '{0.024624470000162546}'::float8[]::float8[], '{"{0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}"}'::text[])
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

SELECT handler,
       CASE WHEN waiting.rows >= rule.size THEN 0.0
            ELSE extract(epoch FROM waiting.oldest - statement_timestamp()) END::float8
FROM unnest('{upgrade_batch}'::text[], '{2}'::int2[]::integer[], '{0:00:00.001000}'::interval[]::interval[]) AS rule(handler, size, wait)
CROSS JOIN LATERAL (
    SELECT count(*) AS rows, min(available_at) AS oldest FROM (
        SELECT available_at FROM outbox_delivery d
        WHERE d.status = 'pending' AND d.held <> '' AND d.held = 'batch' AND d.handler = rule.handler
          AND d.available_at <= statement_timestamp() + rule.wait
        ORDER BY d.id LIMIT rule.size
    ) AS batch
) AS waiting
WHERE waiting.rows > 0

-- ----------------

UPDATE outbox_delivery d SET held = ''
FROM unnest('{upgrade_lane}'::text[], '{lane-1}'::text[]) AS lane(handler, key)
CROSS JOIN LATERAL (
    SELECT p.id, p.status, p.held FROM outbox_delivery p
    WHERE p.handler = lane.handler AND p.key = lane.key AND p.key <> ''
      AND p.status IN ('pending', 'dispatched', 'failed')
      AND (p.status <> 'failed' OR p.handler <> ALL('{}'::text[]))
    ORDER BY p.status <> 'dispatched', p.id LIMIT 1
) AS head
WHERE d.id = head.id AND head.held = 'lane' AND head.status = 'pending' AND d.status = 'pending'

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

-- ----------------

WITH mine AS MATERIALIZED (
    SELECT id FROM unnest('{13}'::int2[]::bigint[]) AS asked(id)
    WHERE pg_try_advisory_xact_lock(hashtextextended('outbox_delivery', id))
)
UPDATE outbox_delivery d SET status = 'succeeded', finished_at = statement_timestamp(), confirm_by = NULL
FROM mine WHERE d.id = mine.id AND d.status IN ('pending', 'dispatched')
RETURNING d.id

-- ----------------

WITH new_event AS (
    
    INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
    SELECT id, topic, key, payload::jsonb, headers::jsonb, dedup_key
    FROM unnest('{01a202f2784b7b50b983af5f91484e10}'::uuid[]::uuid[], '{upgrade.event}'::text[], '{""}'::text[],  E'{"\\"perishable\\""}'::text[], '{"{}"}'::text[], '{once}'::text[])
        AS new(id, topic, key, payload, headers, dedup_key)
 ON CONFLICT (topic, dedup_key) WHERE dedup_key IS NOT NULL DO NOTHING RETURNING id
), new_delivery AS (
    
    INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at)
    SELECT event_id, handler, queue, key, held,
           coalesce(eta, statement_timestamp()) + wait,
           coalesce(expires_at, statement_timestamp() + expires_in)
    FROM unnest('{01a202f2784b7b50b983af5f91484e10}'::uuid[]::uuid[], '{upgrade_event}'::text[], '{upgrades}'::text[], '{""}'::text[], '{""}'::text[], '{NULL}'::timestamptz[], '{0:00:00}'::interval[]::interval[],
                '{NULL}'::timestamptz[], '{"365 days 0:00:00"}'::interval[]::interval[])
        WITH ORDINALITY
        AS new(event_id, handler, queue, key, held, eta, wait, expires_at, expires_in, position)
 WHERE EXISTS (SELECT 1 FROM new_event) ORDER BY position
)
SELECT count(*) FROM new_event

-- ----------------

WITH outcome AS (
    SELECT * FROM unnest('{11,12}'::int2[]::bigint[], '{succeeded,succeeded}'::text[], '{"",""}'::text[], '{0:00:00,0:00:00}'::interval[]::interval[]) AS o(id, status, error, wait)
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
    confirm_by = CASE WHEN o.status = 'dispatched' THEN statement_timestamp() + o.wait + '1:00:00'::interval END,
    finished_at = CASE WHEN o.status IN ('pending', 'dispatched') THEN NULL ELSE statement_timestamp() END
FROM outcome o JOIN locked USING (id)
WHERE d.id = o.id
RETURNING d.id

-- ----------------

DELETE FROM "outbox_handlerstats" WHERE "outbox_handlerstats"."bucket" < (STATEMENT_TIMESTAMP() - '30 days 0:00:00'::interval)

-- ----------------

DELETE FROM "outbox_pausedhandler" WHERE "outbox_pausedhandler"."handler" = 'upgrade_event'

-- ----------------

DELETE FROM "outbox_relayheartbeat" WHERE "outbox_relayheartbeat"."id" = '5fd389999f534b37aaf93669c9f2dc82'::uuid

-- ----------------

DELETE FROM "outbox_relayheartbeat" WHERE "outbox_relayheartbeat"."seen_at" < (STATEMENT_TIMESTAMP() - '1 day 0:00:00'::interval)

-- ----------------

INSERT INTO "outbox_delivery" ("event_id", "handler", "queue", "key", "status", "attempts", "redeliveries", "crashes", "held", "available_at", "expires_at", "dispatched_at", "confirm_by", "finished_at", "error") VALUES ('01a202f278407debba618ee13fca8553'::uuid, 'upgrade_event', 'upgrades', '', DEFAULT, DEFAULT, DEFAULT, DEFAULT, '', (STATEMENT_TIMESTAMP() + '0:00:00'::interval), NULL, NULL, NULL, NULL, DEFAULT), ('01a202f2784772d1a093c32bf909d0ef'::uuid, 'upgrade_event', 'upgrades', '', DEFAULT, DEFAULT, DEFAULT, DEFAULT, '', (STATEMENT_TIMESTAMP() + '0:00:00'::interval), NULL, NULL, NULL, NULL, DEFAULT), ('01a202f2784b7b50b983af5f91484e10'::uuid, 'upgrade_event', 'upgrades', '', DEFAULT, DEFAULT, DEFAULT, DEFAULT, '', (STATEMENT_TIMESTAMP() + '0:00:00'::interval), NULL, NULL, NULL, NULL, DEFAULT), ('01a202f27851707eb5d5091ee8d286f8'::uuid, 'upgrade_event', 'upgrades', '', DEFAULT, DEFAULT, DEFAULT, DEFAULT, '', (STATEMENT_TIMESTAMP() + '0:00:00'::interval), NULL, NULL, NULL, NULL, DEFAULT), ('01a202f27851715d8eed86d99ff9a9ee'::uuid, 'upgrade_event', 'upgrades', '', DEFAULT, DEFAULT, DEFAULT, DEFAULT, '', (STATEMENT_TIMESTAMP() + '0:00:00'::interval), NULL, NULL, NULL, NULL, DEFAULT), ('01a202f2785171c9ae516992bf4dedab'::uuid, 'upgrade_event', 'upgrades', '', DEFAULT, DEFAULT, DEFAULT, DEFAULT, '', (STATEMENT_TIMESTAMP() + '0:00:00'::interval), NULL, NULL, NULL, NULL, DEFAULT) RETURNING "outbox_delivery"."id", "outbox_delivery"."key", "outbox_delivery"."status", "outbox_delivery"."attempts", "outbox_delivery"."redeliveries", "outbox_delivery"."crashes", "outbox_delivery"."held", "outbox_delivery"."available_at", "outbox_delivery"."error"

-- ----------------

INSERT INTO "outbox_pausedhandler" ("handler", "reason", "paused_at") VALUES ('upgrade_event', '', DEFAULT) RETURNING "outbox_pausedhandler"."reason", "outbox_pausedhandler"."paused_at"

-- ----------------

INSERT INTO "outbox_relayheartbeat" ("id", "host", "pid", "queues", "state", "detail", "started_at", "seen_at", "last_dispatch_at", "dispatched") VALUES ('9d73cf953a2c4014ab7da6e433eef486'::uuid, 'host', 13740, '', 'running', '', DEFAULT, STATEMENT_TIMESTAMP(), STATEMENT_TIMESTAMP(), 1) RETURNING "outbox_relayheartbeat"."queues", "outbox_relayheartbeat"."state", "outbox_relayheartbeat"."detail", "outbox_relayheartbeat"."started_at", "outbox_relayheartbeat"."seen_at", "outbox_relayheartbeat"."dispatched"

-- ----------------

SELECT "outbox_delivery"."dispatched_at" AS "dispatched_at" FROM "outbox_delivery" WHERE "outbox_delivery"."id" IN (11, 12) LIMIT 1

-- ----------------

SELECT "outbox_delivery"."event_id" AS "event_id", "outbox_delivery"."handler" AS "handler" FROM "outbox_delivery" WHERE "outbox_delivery"."event_id" IN ('01a202f278407debba618ee13fca8553'::uuid, '01a202f2784772d1a093c32bf909d0ef'::uuid, '01a202f2784b7b50b983af5f91484e10'::uuid, '01a202f27851707eb5d5091ee8d286f8'::uuid, '01a202f27851715d8eed86d99ff9a9ee'::uuid, '01a202f2785171c9ae516992bf4dedab'::uuid) ORDER BY "outbox_delivery"."id" ASC

-- ----------------

SELECT "outbox_delivery"."handler" AS "handler", "outbox_delivery"."status" AS "status" FROM "outbox_delivery" ORDER BY 1 ASC, "outbox_delivery"."id" ASC

-- ----------------

SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE "outbox_delivery"."status" = 'failed' ORDER BY 1 ASC LIMIT 1000

-- ----------------

SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."crashes" > 0 AND "outbox_delivery"."status" IN ('pending', 'dispatched', 'failed')) ORDER BY 1 DESC LIMIT 10000

-- ----------------

SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."status" = 'failed' AND "outbox_delivery"."id" > 4) ORDER BY 1 ASC LIMIT 1000

-- ----------------

SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."status" = 'failed' AND NOT ("outbox_delivery"."key" = '')) ORDER BY "outbox_delivery"."handler" ASC, 1 ASC LIMIT 10000

-- ----------------

SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."status" = 'pending' AND "outbox_delivery"."handler" = 'upgrade_event' AND "outbox_delivery"."held" = 'pause') ORDER BY "outbox_delivery"."id" ASC LIMIT 5000

-- ----------------

SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE (("outbox_delivery"."status" = 'pending' AND "outbox_delivery"."held" = 'pause') OR ("outbox_delivery"."status" = 'pending' AND "outbox_delivery"."held" = 'batch' AND NOT ("outbox_delivery"."handler" IN ('upgrade_batch')))) LIMIT 1000

-- ----------------

SELECT "outbox_delivery"."id" AS "pk", "outbox_delivery"."event_id" AS "event_id", "outbox_delivery"."handler" AS "handler", "outbox_delivery"."dispatched_at" AS "dispatched_at", NOT ("outbox_delivery"."error" = '') AS "retried", "outbox_delivery"."dispatched_at" < (STATEMENT_TIMESTAMP() - '1 day 0:00:00'::interval) AS "stale" FROM "outbox_delivery" WHERE ("outbox_delivery"."status" = 'dispatched' AND "outbox_delivery"."confirm_by" < (STATEMENT_TIMESTAMP())) ORDER BY "outbox_delivery"."confirm_by" ASC LIMIT 1000

-- ----------------

SELECT "outbox_delivery"."id", "outbox_delivery"."event_id", "outbox_delivery"."handler", "outbox_delivery"."queue", "outbox_delivery"."key", "outbox_delivery"."status", "outbox_delivery"."attempts", "outbox_delivery"."redeliveries", "outbox_delivery"."crashes", "outbox_delivery"."held", "outbox_delivery"."available_at", "outbox_delivery"."expires_at", "outbox_delivery"."dispatched_at", "outbox_delivery"."confirm_by", "outbox_delivery"."finished_at", "outbox_delivery"."error" FROM "outbox_delivery" WHERE ("outbox_delivery"."status" = 'pending' AND "outbox_delivery"."handler" = 'upgrade_batch' AND "outbox_delivery"."held" = 'batch' AND "outbox_delivery"."available_at" <= (STATEMENT_TIMESTAMP() + '0:00:00.001000'::interval)) ORDER BY "outbox_delivery"."id" ASC LIMIT 2 FOR NO KEY UPDATE SKIP LOCKED

-- ----------------

SELECT "outbox_event"."id" AS "id", "outbox_event"."topic" AS "topic", "outbox_event"."key" AS "key" FROM "outbox_event" WHERE ("outbox_event"."id" >= '01a202bb8e6e7ddf8000000000000000'::uuid AND "outbox_event"."id" < '01a202f27cef720c8000000000000000'::uuid AND "outbox_event"."id" > '01a202f278597c70b4230fe90957c089'::uuid) ORDER BY "outbox_event"."id" ASC LIMIT 1000

-- ----------------

SELECT "outbox_event"."id" AS "id", "outbox_event"."topic" AS "topic", "outbox_event"."key" AS "key" FROM "outbox_event" WHERE ("outbox_event"."id" >= '01a202bb8e6e7ddf8000000000000000'::uuid AND "outbox_event"."id" < '01a202f27cef720c8000000000000000'::uuid) ORDER BY "outbox_event"."id" ASC LIMIT 1000

-- ----------------

SELECT "outbox_event"."id" AS "pk" FROM "outbox_event" WHERE "outbox_event"."id" < '01a1dee5f5ea7d268000000000000000'::uuid ORDER BY 1 ASC LIMIT 1000

-- ----------------

SELECT "outbox_event"."id" AS "pk" FROM "outbox_event" WHERE "outbox_event"."id" IN ('01a202f278407debba618ee13fca8553'::uuid, '01a202f2784772d1a093c32bf909d0ef'::uuid, '01a202f2784b7b50b983af5f91484e10'::uuid, '01a202f27851707eb5d5091ee8d286f8'::uuid, '01a202f27851715d8eed86d99ff9a9ee'::uuid, '01a202f2785171c9ae516992bf4dedab'::uuid) ORDER BY 1 ASC FOR NO KEY UPDATE

-- ----------------

SELECT "outbox_event"."id", "outbox_event"."topic", "outbox_event"."key", "outbox_event"."dedup_key", "outbox_event"."payload", "outbox_event"."headers", "outbox_event"."created_at" FROM "outbox_event" ORDER BY "outbox_event"."id" ASC LIMIT 1

-- ----------------

SELECT "outbox_event"."id", "outbox_event"."topic", "outbox_event"."key", "outbox_event"."dedup_key", "outbox_event"."payload", "outbox_event"."headers", "outbox_event"."created_at" FROM "outbox_event" WHERE "outbox_event"."id" IN ('01a202f27858706ab0f52a7f73c803ee'::uuid, '01a202f2785771e790a5096d046099b8'::uuid)

-- ----------------

SELECT "outbox_handlerstats"."handler" AS "handler", SUM("outbox_handlerstats"."dispatched") AS "merged_0", SUM("outbox_handlerstats"."succeeded") AS "merged_1", SUM("outbox_handlerstats"."retried") AS "merged_2", SUM("outbox_handlerstats"."failed") AS "merged_3", SUM("outbox_handlerstats"."duration_total_s") AS "merged_4", MAX("outbox_handlerstats"."duration_max_s") AS "merged_5", COALESCE(SUM(("outbox_handlerstats"."histogram")[0 + 1]), 0) AS "merged_6", COALESCE(SUM(("outbox_handlerstats"."histogram")[1 + 1]), 0) AS "merged_7", COALESCE(SUM(("outbox_handlerstats"."histogram")[2 + 1]), 0) AS "merged_8", COALESCE(SUM(("outbox_handlerstats"."histogram")[3 + 1]), 0) AS "merged_9", COALESCE(SUM(("outbox_handlerstats"."histogram")[4 + 1]), 0) AS "merged_10", COALESCE(SUM(("outbox_handlerstats"."histogram")[5 + 1]), 0) AS "merged_11", COALESCE(SUM(("outbox_handlerstats"."histogram")[6 + 1]), 0) AS "merged_12", COALESCE(SUM(("outbox_handlerstats"."histogram")[7 + 1]), 0) AS "merged_13", COALESCE(SUM(("outbox_handlerstats"."histogram")[8 + 1]), 0) AS "merged_14", COALESCE(SUM(("outbox_handlerstats"."histogram")[9 + 1]), 0) AS "merged_15", COALESCE(SUM(("outbox_handlerstats"."histogram")[10 + 1]), 0) AS "merged_16", COALESCE(SUM(("outbox_handlerstats"."histogram")[11 + 1]), 0) AS "merged_17", COALESCE(SUM(("outbox_handlerstats"."histogram")[12 + 1]), 0) AS "merged_18", COALESCE(SUM(("outbox_handlerstats"."histogram")[13 + 1]), 0) AS "merged_19", COALESCE(SUM(("outbox_handlerstats"."histogram")[14 + 1]), 0) AS "merged_20", COALESCE(SUM(("outbox_handlerstats"."histogram")[15 + 1]), 0) AS "merged_21", COALESCE(SUM(("outbox_handlerstats"."histogram")[16 + 1]), 0) AS "merged_22", COALESCE(SUM(("outbox_handlerstats"."histogram")[17 + 1]), 0) AS "merged_23", COALESCE(SUM(("outbox_handlerstats"."histogram")[18 + 1]), 0) AS "merged_24", COALESCE(SUM(("outbox_handlerstats"."histogram")[19 + 1]), 0) AS "merged_25", COALESCE(SUM(("outbox_handlerstats"."histogram")[20 + 1]), 0) AS "merged_26", COALESCE(SUM(("outbox_handlerstats"."histogram")[21 + 1]), 0) AS "merged_27", COALESCE(SUM(("outbox_handlerstats"."histogram")[22 + 1]), 0) AS "merged_28", COALESCE(SUM(("outbox_handlerstats"."histogram")[23 + 1]), 0) AS "merged_29", COALESCE(SUM(("outbox_handlerstats"."histogram")[24 + 1]), 0) AS "merged_30", COALESCE(SUM(("outbox_handlerstats"."histogram")[25 + 1]), 0) AS "merged_31", COALESCE(SUM(("outbox_handlerstats"."histogram")[26 + 1]), 0) AS "merged_32", COALESCE(SUM(("outbox_handlerstats"."histogram")[27 + 1]), 0) AS "merged_33", COALESCE(SUM(("outbox_handlerstats"."histogram")[28 + 1]), 0) AS "merged_34", COALESCE(SUM(("outbox_handlerstats"."histogram")[29 + 1]), 0) AS "merged_35", COALESCE(SUM(("outbox_handlerstats"."histogram")[30 + 1]), 0) AS "merged_36", COALESCE(SUM(("outbox_handlerstats"."histogram")[31 + 1]), 0) AS "merged_37", COALESCE(SUM(("outbox_handlerstats"."histogram")[32 + 1]), 0) AS "merged_38", COALESCE(SUM(("outbox_handlerstats"."histogram")[33 + 1]), 0) AS "merged_39", COALESCE(SUM(("outbox_handlerstats"."histogram")[34 + 1]), 0) AS "merged_40", COALESCE(SUM(("outbox_handlerstats"."histogram")[35 + 1]), 0) AS "merged_41", COALESCE(SUM(("outbox_handlerstats"."histogram")[36 + 1]), 0) AS "merged_42", COALESCE(SUM(("outbox_handlerstats"."histogram")[37 + 1]), 0) AS "merged_43", COALESCE(SUM(("outbox_handlerstats"."histogram")[38 + 1]), 0) AS "merged_44", COALESCE(SUM(("outbox_handlerstats"."histogram")[39 + 1]), 0) AS "merged_45", COALESCE(SUM(("outbox_handlerstats"."histogram")[40 + 1]), 0) AS "merged_46", COALESCE(SUM(("outbox_handlerstats"."histogram")[41 + 1]), 0) AS "merged_47", COALESCE(SUM(("outbox_handlerstats"."histogram")[42 + 1]), 0) AS "merged_48", COALESCE(SUM(("outbox_handlerstats"."histogram")[43 + 1]), 0) AS "merged_49", COALESCE(SUM(("outbox_handlerstats"."histogram")[44 + 1]), 0) AS "merged_50", COALESCE(SUM(("outbox_handlerstats"."histogram")[45 + 1]), 0) AS "merged_51", COALESCE(SUM(("outbox_handlerstats"."histogram")[46 + 1]), 0) AS "merged_52", COALESCE(SUM(("outbox_handlerstats"."histogram")[47 + 1]), 0) AS "merged_53", COALESCE(SUM(("outbox_handlerstats"."histogram")[48 + 1]), 0) AS "merged_54", COALESCE(SUM(("outbox_handlerstats"."histogram")[49 + 1]), 0) AS "merged_55", COALESCE(SUM(("outbox_handlerstats"."histogram")[50 + 1]), 0) AS "merged_56", COALESCE(SUM(("outbox_handlerstats"."histogram")[51 + 1]), 0) AS "merged_57", COALESCE(SUM(("outbox_handlerstats"."histogram")[52 + 1]), 0) AS "merged_58", COALESCE(SUM(("outbox_handlerstats"."histogram")[53 + 1]), 0) AS "merged_59", COALESCE(SUM(("outbox_handlerstats"."histogram")[54 + 1]), 0) AS "merged_60", COALESCE(SUM(("outbox_handlerstats"."histogram")[55 + 1]), 0) AS "merged_61", COALESCE(SUM(("outbox_handlerstats"."histogram")[56 + 1]), 0) AS "merged_62", COALESCE(SUM(("outbox_handlerstats"."histogram")[57 + 1]), 0) AS "merged_63" FROM "outbox_handlerstats" GROUP BY 1 ORDER BY 1 ASC

-- ----------------

SELECT "outbox_pausedhandler"."handler" AS "handler" FROM "outbox_pausedhandler"

-- ----------------

SELECT "outbox_pausedhandler"."handler", "outbox_pausedhandler"."reason", "outbox_pausedhandler"."paused_at" FROM "outbox_pausedhandler" ORDER BY "outbox_pausedhandler"."handler" ASC LIMIT 20

-- ----------------

SELECT "outbox_pausedhandler"."handler", "outbox_pausedhandler"."reason", "outbox_pausedhandler"."paused_at" FROM "outbox_pausedhandler" WHERE "outbox_pausedhandler"."handler" = 'upgrade_event' LIMIT 21

-- ----------------

SELECT (STATEMENT_TIMESTAMP() - "outbox_delivery"."available_at") AS "age" FROM "outbox_delivery" WHERE ("outbox_delivery"."status" = 'pending' AND "outbox_delivery"."available_at" <= (STATEMENT_TIMESTAMP()) AND "outbox_delivery"."held" = '') ORDER BY "outbox_delivery"."available_at" ASC, "outbox_delivery"."id" ASC LIMIT 1

-- ----------------

SELECT 1 AS "a" FROM "outbox_delivery" WHERE "outbox_delivery"."status" IN ('pending', 'dispatched') LIMIT 1

-- ----------------

SELECT COUNT(*) AS "__count" FROM "outbox_relayheartbeat" WHERE "outbox_relayheartbeat"."seen_at" >= (STATEMENT_TIMESTAMP() - '0:00:30'::interval)

-- ----------------

SELECT COUNT(*) FROM (SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE "outbox_delivery"."status" = 'failed' LIMIT 100000) subquery

-- ----------------

SELECT COUNT(*) FROM (SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."status" = 'dispatched' AND "outbox_delivery"."confirm_by" < (STATEMENT_TIMESTAMP())) LIMIT 100000) subquery

-- ----------------

SELECT COUNT(*) FROM (SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."status" = 'pending' AND "outbox_delivery"."available_at" <= (STATEMENT_TIMESTAMP()) AND "outbox_delivery"."held" = '') LIMIT 100000) subquery

-- ----------------

SELECT COUNT(*) FROM (SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."status" = 'pending' AND "outbox_delivery"."available_at" > (STATEMENT_TIMESTAMP()) AND "outbox_delivery"."held" = '') LIMIT 100000) subquery

-- ----------------

SELECT COUNT(*) FROM (SELECT "outbox_delivery"."id" AS "pk" FROM "outbox_delivery" WHERE ("outbox_delivery"."status" = 'pending' AND NOT ("outbox_delivery"."held" = '')) LIMIT 100000) subquery

-- ----------------

SELECT DISTINCT "outbox_delivery"."handler" AS "handler", "outbox_delivery"."key" AS "key" FROM "outbox_delivery" WHERE ("outbox_delivery"."event_id" = '01a202f278407debba618ee13fca8553'::uuid AND "outbox_delivery"."status" = 'pending' AND "outbox_delivery"."status" IN ('failed', 'pending') AND NOT ("outbox_delivery"."key" = ''))

-- ----------------

SELECT DISTINCT "outbox_delivery"."handler" AS "handler", "outbox_delivery"."key" AS "key" FROM "outbox_delivery" WHERE ("outbox_delivery"."status" = 'pending' AND (("outbox_delivery"."handler" = '' AND "outbox_delivery"."key" > '') OR "outbox_delivery"."handler" > '') AND "outbox_delivery"."held" = 'lane') ORDER BY 1 ASC, 2 ASC LIMIT 1000

-- ----------------

SELECT DISTINCT "outbox_delivery"."handler" AS "handler", "outbox_delivery"."key" AS "key" FROM "outbox_delivery" WHERE ("outbox_delivery"."status" IN ('failed', 'pending') AND NOT ("outbox_delivery"."key" = ''))

-- ----------------

SELECT MAX("age") FILTER (WHERE "__col1" = 'batch') FROM (SELECT (STATEMENT_TIMESTAMP() - "outbox_delivery"."available_at") AS "age", "outbox_delivery"."held" AS "__col1" FROM "outbox_delivery" WHERE ("outbox_delivery"."status" = 'pending' AND NOT ("outbox_delivery"."held" = '')) ORDER BY "outbox_delivery"."handler" ASC, "outbox_delivery"."id" ASC LIMIT 100000) subquery

-- ----------------

SELECT STATEMENT_TIMESTAMP() AS "now" FROM "outbox_event" ORDER BY "outbox_event"."id" ASC LIMIT 1

-- ----------------

UPDATE "outbox_delivery" SET "attempts" = LEAST(("outbox_delivery"."attempts" + 1), 32767), "dispatched_at" = STATEMENT_TIMESTAMP(), "status" = 'dispatched', "confirm_by" = (STATEMENT_TIMESTAMP() + '1:00:00'::interval) WHERE ("outbox_delivery"."id" IN (11, 12) AND "outbox_delivery"."status" = 'pending')

-- ----------------

UPDATE "outbox_delivery" SET "status" = 'discarded', "finished_at" = STATEMENT_TIMESTAMP(), "confirm_by" = NULL, "error" = CASE WHEN ("outbox_delivery"."error" = '') THEN 'cancelled' ELSE (COALESCE('cancelled

', '') || COALESCE("outbox_delivery"."error", '')) END WHERE ("outbox_delivery"."event_id" = '01a202f278407debba618ee13fca8553'::uuid AND "outbox_delivery"."status" = 'pending' AND "outbox_delivery"."status" IN ('failed', 'pending'))

-- ----------------

UPDATE "outbox_delivery" SET "status" = 'discarded', "finished_at" = STATEMENT_TIMESTAMP(), "confirm_by" = NULL, "error" = CASE WHEN ("outbox_delivery"."error" = '') THEN 'enough' ELSE (COALESCE('enough

', '') || COALESCE("outbox_delivery"."error", '')) END WHERE "outbox_delivery"."status" IN ('failed', 'pending')

-- ----------------

UPDATE "outbox_delivery" SET "status" = 'pending', "available_at" = STATEMENT_TIMESTAMP(), "held" = '', "attempts" = 0, "redeliveries" = 1, "crashes" = 0, "finished_at" = NULL, "confirm_by" = NULL WHERE ("outbox_delivery"."id" IN (4) AND "outbox_delivery"."status" = 'failed')

-- ----------------

UPDATE "outbox_delivery" SET "status" = 'pending', "redeliveries" = 1 WHERE "outbox_delivery"."status" = 'dispatched'

-- ----------------

UPDATE "outbox_relayheartbeat" SET "seen_at" = STATEMENT_TIMESTAMP(), "host" = 'host', "pid" = 13740, "queues" = '', "state" = 'running', "detail" = '', "dispatched" = 1, "last_dispatch_at" = STATEMENT_TIMESTAMP() WHERE "outbox_relayheartbeat"."id" = '9d73cf953a2c4014ab7da6e433eef486'::uuid

-- ----------------

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

WITH new_event AS (
    INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
    SELECT id, topic, key, payload::jsonb, headers::jsonb, dedup_key
    FROM unnest('{01a202f27851707eb5d5091ee8d286f8,01a202f27851715d8eed86d99ff9a9ee,01a202f2785171c9ae516992bf4dedab}'::uuid[]::uuid[], '{upgrade.event,upgrade.event,upgrade.event}'::text[], '{many-0,many-1,many-2}'::text[], '{0,1,2}'::text[], '{"{}","{}","{}"}'::text[], '{NULL,NULL,NULL}'::text[])
        AS new(id, topic, key, payload, headers, dedup_key)
) 
    INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at)
    SELECT event_id, handler, queue, key, held,
           coalesce(eta, statement_timestamp()) + wait,
           coalesce(expires_at, statement_timestamp() + expires_in)
    FROM unnest('{01a202f27851707eb5d5091ee8d286f8,01a202f27851715d8eed86d99ff9a9ee,01a202f2785171c9ae516992bf4dedab}'::uuid[]::uuid[], '{upgrade_event,upgrade_event,upgrade_event}'::text[], '{upgrades,upgrades,upgrades}'::text[], '{"","",""}'::text[], '{"","",""}'::text[], '{NULL,NULL,NULL}'::timestamptz[], '{0:00:00,0:00:00,0:00:00}'::interval[]::interval[],
                '{NULL,NULL,NULL}'::timestamptz[], '{NULL,NULL,NULL}'::interval[])
        WITH ORDINALITY
        AS new(event_id, handler, queue, key, held, eta, wait, expires_at, expires_in, position)
 ORDER BY position

-- ----------------

WITH new_event AS (
INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f2784772d1a093c32bf909d0ef'::uuid, 'upgrade.event', '', '"delayed"'::jsonb, '{}'::jsonb, NULL)
) 
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES ('01a202f2784772d1a093c32bf909d0ef'::uuid, 'upgrade_event', 'upgrades', '', '', '2026-01-01 00:00:00+00:00'::timestamptz, NULL)

-- ----------------

WITH new_event AS (
INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f2784f78199a31868b94e125ca'::uuid, 'upgrade.failing', '', 'null'::jsonb, '{}'::jsonb, NULL)
) 
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES ('01a202f2784f78199a31868b94e125ca'::uuid, 'upgrade_failing', 'upgrades', '', '', statement_timestamp() + '0:00:00.001000'::interval, NULL)

-- ----------------

WITH new_event AS (
INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f278587c0f92584c29ca52ce8a'::uuid, 'upgrade.lane', 'lane-1', '0'::jsonb, '{}'::jsonb, NULL)
) 
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES ('01a202f278587c0f92584c29ca52ce8a'::uuid, 'upgrade_lane', 'upgrades', 'lane-1', '', statement_timestamp(), NULL)
