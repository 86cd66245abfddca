-- Enqueueing from SQL, inside the caller's own transaction.

ALTER TABLE job_types
    -- How many attempts a job of a type that the service knows gets unless it says otherwise; NULL: it knows none of that
    -- name. Written by the service.
    ADD COLUMN max_attempts smallint;

-- UUID v7: the time in milliseconds, then random bits. Source: RFC 9562, 5.7.
CREATE FUNCTION uuid_v7() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
        52, 1), 53, 1), 'hex')::uuid
$$;

-- The limits are those of the wire contract. Runs with the rights of its owner, so a caller needs EXECUTE on it and USAGE on
-- the schema, and no right on any table.
CREATE FUNCTION enqueue(
    type            text,
    payload         json,
    idempotency_key text        DEFAULT NULL,
    priority        integer     DEFAULT 0,
    delay           interval    DEFAULT NULL,
    run_at          timestamptz DEFAULT NULL,
    max_attempts    integer     DEFAULT NULL,
    tags            text[]      DEFAULT NULL,
    timeout         interval    DEFAULT NULL
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    new_id   uuid := uuid_v7();
    attempts integer;
    due      timestamptz;
    hash     bytea;
    taken    record;
BEGIN
    SELECT coalesce(enqueue.max_attempts, t.max_attempts) INTO attempts
    FROM job_types t WHERE t.type = enqueue.type AND t.max_attempts IS NOT NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no job type %', quote_nullable(left(enqueue.type, 100)) USING ERRCODE = '22023',
            HINT = 'queue-service types lists those that there are';
    END IF;
    IF payload IS NULL OR octet_length(payload::text) > 524288 THEN
        RAISE EXCEPTION 'payload must be JSON of at most 524288 bytes (512 KiB)' USING ERRCODE = '22023';
    ELSIF payload::text LIKE '%\\u0000%' THEN
        RAISE EXCEPTION 'payload must not hold NUL characters' USING ERRCODE = '22023';
    ELSIF priority IS NULL OR priority NOT BETWEEN -9 AND 9 THEN
        RAISE EXCEPTION 'priority must be -9 to 9' USING ERRCODE = '22023';
    ELSIF attempts NOT BETWEEN 1 AND 100 THEN
        RAISE EXCEPTION 'max_attempts must be 1 to 100' USING ERRCODE = '22023';
    ELSIF delay IS NOT NULL AND run_at IS NOT NULL THEN
        RAISE EXCEPTION 'give either delay or run_at, not both' USING ERRCODE = '22023';
    ELSIF delay < interval '0' OR delay > interval '10 years' THEN
        RAISE EXCEPTION 'delay must be 0 to 10 years' USING ERRCODE = '22023';
    ELSIF run_at > now() + interval '10 years' THEN
        RAISE EXCEPTION 'run_at must be at most 10 years ahead' USING ERRCODE = '22023';
    ELSIF timeout NOT BETWEEN interval '100 milliseconds' AND interval '24 hours' THEN
        RAISE EXCEPTION 'timeout must be 100 milliseconds to 24 hours' USING ERRCODE = '22023';
    ELSIF cardinality(tags) > 20 THEN
        RAISE EXCEPTION '% tags; at most 20 are taken', cardinality(tags) USING ERRCODE = '22023';
    ELSIF EXISTS (SELECT FROM unnest(tags) AS t (tag) WHERE tag IS NULL OR char_length(tag) NOT BETWEEN 1 AND 64) THEN
        RAISE EXCEPTION 'each tag must have 1 to 64 characters' USING ERRCODE = '22023';
    ELSIF char_length(idempotency_key) NOT BETWEEN 1 AND 255 OR idempotency_key ~ '[[:cntrl:]]' THEN
        RAISE EXCEPTION 'idempotency_key must have 1 to 255 characters and no control characters' USING ERRCODE = '22023';
    END IF;

    IF idempotency_key IS NOT NULL THEN
        hash := sha256(convert_to(concat_ws(E'\x1f', enqueue.type, payload::jsonb::text, priority, delay, run_at,
                                            enqueue.max_attempts, tags::text, timeout), 'UTF8'));
        LOOP
            INSERT INTO job_keys (key, job_id, content_hash) VALUES (idempotency_key, new_id, hash)
            ON CONFLICT (key) DO NOTHING;
            EXIT WHEN FOUND;
            SELECT k.job_id, k.content_hash, EXISTS (SELECT FROM all_jobs j WHERE j.id = k.job_id) AS lives
            INTO taken FROM job_keys k WHERE k.key = idempotency_key;
            IF FOUND AND taken.lives AND taken.content_hash = hash THEN
                RETURN taken.job_id;
            ELSIF FOUND AND taken.lives THEN
                RAISE EXCEPTION 'the key belongs to job %, which was asked for with other content', taken.job_id
                    USING ERRCODE = '23505', HINT = 'use a new key';
            END IF;
            -- The job that the key named is past its retention.
            DELETE FROM job_keys k WHERE k.key = idempotency_key AND k.job_id = taken.job_id;
        END LOOP;
    END IF;

    due := greatest(coalesce(run_at, now() + delay, now()), now());
    INSERT INTO jobs (id, type, payload, priority, max_attempts, timeout_ms, tags, idempotency_key, run_at)
    VALUES (new_id, enqueue.type, payload, priority, attempts, (extract(epoch FROM timeout) * 1000)::bigint,
            CASE WHEN cardinality(tags) > 0 THEN tags END, idempotency_key, due);
    INSERT INTO outbox (id, kind, publish_at, job_ids, targets)
    VALUES (gen_random_uuid(), 'wake-up', due, ARRAY[new_id],
            ARRAY[enqueue.type || CASE sign(priority) WHEN 1 THEN '.high' WHEN 0 THEN '.normal' ELSE '.low' END]);
    INSERT INTO job_count_deltas (type, status, day, n) VALUES (enqueue.type, 'pending', 'epoch', 1);
    -- Told at the commit, once for all of a transaction.
    PERFORM pg_notify(current_schema() || '_outbox', '');
    RETURN new_id;
END $$;

-- Nobody's search path but this schema's; and nobody may call it who was not given the right.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION enqueue SET search_path = %I, pg_temp', current_schema());
    REVOKE EXECUTE ON FUNCTION enqueue FROM PUBLIC;
END $$;
