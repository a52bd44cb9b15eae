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
        VALUES ('01a216a1cdcf704b8a6e802ea6372667'::uuid, 'upgrade.event', '1'::jsonb, 'many-1',
                '{}', 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdcf704b8a6e802ea6372667'::uuid, 'upgrade_event', 'upgrades', '', '', statement_timestamp(), NULL)
    

-- ----------------

        WITH new_event AS (
        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES ('01a216a1cdcf7088adf1c287fa65c715'::uuid, 'upgrade.event', '2'::jsonb, 'many-2',
                '{}', 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdcf7088adf1c287fa65c715'::uuid, 'upgrade_event', 'upgrades', '', '', statement_timestamp(), NULL)
    

-- ----------------

        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES ('01a216a1cdcf7e2893c138e4ce25a248'::uuid, 'upgrade.nobody', 'null'::jsonb, '',
                '{}', 1)
    

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
        VALUES ('01a216a1cdd176e9ad579b75aecc6e0f'::uuid, 'actor.upgrade_call', '{"args":[8],"kwargs":{},"options":{"max_retries":2}}'::jsonb, '',
                '{}', 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdd176e9ad579b75aecc6e0f'::uuid, 'upgrade_call', 'upgrades', '', '', statement_timestamp(), NULL)
    

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
        VALUES ('01a216a1cdd379848f1647ad750b5497'::uuid, 'upgrade.batch', '{"n":1}'::jsonb, '',
                '{}', 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdd379848f1647ad750b5497'::uuid, 'upgrade_batch', 'upgrades', '', 'batch', statement_timestamp() + '0:00:00.001000'::interval, NULL)
    

-- ----------------

        WITH new_event AS (
        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES ('01a216a1cdd4751796b64b210a1951a5'::uuid, 'upgrade.ordered', '0'::jsonb, 'key-1',
                '{}', 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdd4751796b64b210a1951a5'::uuid, 'upgrade_ordered', 'upgrades', 'key-1', '', statement_timestamp(), NULL)
    

-- ----------------

        WITH new_event AS (
        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES ('01a216a1cdd47d3c91454391d425939c'::uuid, 'upgrade.ordered', '1'::jsonb, 'key-1',
                '{}', 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdd47d3c91454391d425939c'::uuid, 'upgrade_ordered', 'upgrades', 'key-1', '', statement_timestamp(), NULL)
    

-- ----------------

        WITH new_event AS (
        INSERT INTO outbox_event (id, topic, payload, key, headers, version)
        VALUES ('01a216a1cdd571f1b90fa8f294809735'::uuid, 'upgrade.ordered', '2'::jsonb, 'key-1',
                '{}', 1)
    )
        INSERT INTO outbox_delivery (event_id, handler, queue, key, waits_for, available_at, expires_at)
        VALUES ('01a216a1cdd571f1b90fa8f294809735'::uuid, 'upgrade_ordered', 'upgrades', 'key-1', '', statement_timestamp(), NULL)
    
