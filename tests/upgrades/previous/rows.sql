WITH new_event AS (
INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f278407debba618ee13fca8553'::uuid, 'upgrade.event', 'one', '{"text":"naïve","n":[1,null]}'::jsonb, '{"tenant":"a"}'::jsonb, NULL)
) 
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES ('01a202f278407debba618ee13fca8553'::uuid, 'upgrade_event', 'upgrades', '', '', statement_timestamp(), NULL)

-- ----------------

WITH new_event AS (
INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f2784772d1a093c32bf909d0ef'::uuid, 'upgrade.event', '', '"delayed"'::jsonb, '{}'::jsonb, NULL)
) 
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES ('01a202f2784772d1a093c32bf909d0ef'::uuid, 'upgrade_event', 'upgrades', '', '', '2026-01-01 00:00:00+00:00'::timestamptz, NULL)

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

WITH new_event AS (
INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f2784f78199a31868b94e125ca'::uuid, 'upgrade.failing', '', 'null'::jsonb, '{}'::jsonb, NULL)
) 
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES ('01a202f2784f78199a31868b94e125ca'::uuid, 'upgrade_failing', 'upgrades', '', '', statement_timestamp() + '0:00:00.001000'::interval, NULL)

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

INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f278527d10aa61cedf3df018a6'::uuid, 'upgrade.nobody', '', 'null'::jsonb, '{}'::jsonb, NULL)

-- ----------------

WITH new_event AS (
INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f2785474c8910af0c90d02560f'::uuid, 'actor.upgrade_call', '', '{"args":[7],"kwargs":{"width":2}}'::jsonb, '{}'::jsonb, NULL)
) 
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES ('01a202f2785474c8910af0c90d02560f'::uuid, 'upgrade_call', 'upgrades', '', '', statement_timestamp(), NULL)

-- ----------------

WITH new_event AS (
INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f2785572a0a3b3a3f70eb3f237'::uuid, 'actor.upgrade_call', '', '{"args":[8],"kwargs":{},"options":{"max_retries":2}}'::jsonb, '{}'::jsonb, NULL)
) 
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES ('01a202f2785572a0a3b3a3f70eb3f237'::uuid, 'upgrade_call', 'upgrades', '', '', statement_timestamp(), NULL)

-- ----------------

WITH new_event AS (
INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f2785675f9beccbb6acbf85a51'::uuid, 'upgraded.testapp.order', '', '{"signal":"tests.upgrades.handlers.upgraded","carried":["upgrade_receiver"],"snapshots":{"sender":{"$":"class","v":"testapp.Order"},"order":{"$":"instance","model":"testapp.Order","database":null,"adding":true,"fields":{"id":41,"customer_id":null,"status":"paid","total":{"$":"decimal","v":"9.90"},"note":""}},"at":{"$":"datetime","v":"2026-01-01T00:00:00+00:00"},"token":{"$":"uuid","v":"00000000-0000-0000-0000-000000000001"},"amounts":{"net":{"$":"decimal","v":"1.50"},"wait":{"$":"timedelta","v":[0,60,0]}},"colour":{"$":"enum","v":"RED","path":"tests.upgrades.handlers:Colour"}}}'::jsonb, '{}'::jsonb, NULL)
) 
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES ('01a202f2785675f9beccbb6acbf85a51'::uuid, 'upgrade_receiver', 'upgrades', '', '', statement_timestamp(), NULL)

-- ----------------

WITH new_event AS (
INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f2785771e790a5096d046099b8'::uuid, 'upgrade.batch', '', '{"n":0}'::jsonb, '{}'::jsonb, NULL)
) 
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES ('01a202f2785771e790a5096d046099b8'::uuid, 'upgrade_batch', 'upgrades', '', 'batch', statement_timestamp() + '0:00:00.001000'::interval, NULL)

-- ----------------

WITH new_event AS (
INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f27858706ab0f52a7f73c803ee'::uuid, 'upgrade.batch', '', '{"n":1}'::jsonb, '{}'::jsonb, NULL)
) 
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES ('01a202f27858706ab0f52a7f73c803ee'::uuid, 'upgrade_batch', 'upgrades', '', 'batch', statement_timestamp() + '0:00:00.001000'::interval, NULL)

-- ----------------

WITH new_event AS (
INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f278587c0f92584c29ca52ce8a'::uuid, 'upgrade.lane', 'lane-1', '0'::jsonb, '{}'::jsonb, NULL)
) 
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES ('01a202f278587c0f92584c29ca52ce8a'::uuid, 'upgrade_lane', 'upgrades', 'lane-1', '', statement_timestamp(), NULL)

-- ----------------

WITH new_event AS (
INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f278597589bb531bd89f2f0c92'::uuid, 'upgrade.lane', 'lane-1', '1'::jsonb, '{}'::jsonb, NULL)
) 
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES ('01a202f278597589bb531bd89f2f0c92'::uuid, 'upgrade_lane', 'upgrades', 'lane-1', '', statement_timestamp(), NULL)

-- ----------------

WITH new_event AS (
INSERT INTO outbox_event (id, topic, key, payload, headers, dedup_key)
VALUES ('01a202f278597c70b4230fe90957c089'::uuid, 'upgrade.lane', 'lane-1', '2'::jsonb, '{}'::jsonb, NULL)
) 
INSERT INTO outbox_delivery (event_id, handler, queue, key, held, available_at, expires_at) VALUES ('01a202f278597c70b4230fe90957c089'::uuid, 'upgrade_lane', 'upgrades', 'lane-1', '', statement_timestamp(), NULL)
