-- no-transaction
-- A key names a job of its type, and what was asked for with it is compared by its values (docs/adr/0031).
--
-- Versions before this one write and read `key`, `job_id` and `content_hash` alone, and count on `key` being the primary key. So it
-- stays one: the first type that uses a key has it there as it is, others have it with their type before it. `type` and
-- `name` say what a row stands for; both are NULL where such a version wrote it.
ALTER TABLE job_keys
    ADD COLUMN IF NOT EXISTS type         text,
    ADD COLUMN IF NOT EXISTS name         text,
    -- Of values, by the formula of this version; `content_hash` is by the one that versions before this know.
    ADD COLUMN IF NOT EXISTS value_hash   bytea,
    ADD COLUMN IF NOT EXISTS hash_version smallint;

CREATE UNIQUE INDEX CONCURRENTLY job_keys_identity ON job_keys (type, name) WHERE type IS NOT NULL;

-- Where the row of a new key goes.
CREATE OR REPLACE FUNCTION key_row(type text, name text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN EXISTS (SELECT FROM job_keys k WHERE k.key = $2 AND k.type <> $1)
                THEN chr(2) || $1 || chr(2) || $2 ELSE $2 END
$$;

-- A number of JSON without its spelling: sign, digits that neither begin nor end with zero, and a power of ten.
CREATE OR REPLACE FUNCTION plain_number(n text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    parts  text[];
    digits text;
    short  text := rtrim(n, '0');
BEGIN
    -- Most are short integers, and this is quicker.
    IF translate(n, '-0123456789', '') = '' AND short NOT IN ('', '-') THEN
        RETURN short || 'e' || (length(n) - length(short));
    END IF;
    parts := regexp_match(n, '^(-?)([0-9]+)(?:[.]([0-9]+))?(?:[eE]([-+]?[0-9]+))?$');
    digits := ltrim(parts[2] || coalesce(parts[3], ''), '0');
    short := rtrim(digits, '0');
    IF short = '' THEN
        RETURN '0';
    END IF;
    RETURN parts[1] || short || 'e'
        || (coalesce(parts[4], '0')::numeric - length(coalesce(parts[3], '')) + length(digits) - length(short));
END $$;

-- The values of a payload, a line each, as src/job/content.rs writes them.
CREATE OR REPLACE FUNCTION payload_lines(payload json) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    lines text;
BEGIN
    WITH RECURSIVE nodes (path, depth, label, value) AS (
        SELECT ARRAY[]::text[], 0, ''::text, payload
        UNION ALL
        SELECT n.path || c.step, n.depth + 1, c.label, c.value
        FROM nodes n CROSS JOIN LATERAL (
            SELECT m.key AS step, 'k' || octet_length(m.key) || ':' || m.key AS label, m.value
            FROM json_each(CASE json_typeof(n.value) WHEN 'object' THEN n.value ELSE '{}' END) AS m
            UNION ALL
            SELECT lpad(i.place::text, 10, '0'), '', i.value
            FROM json_array_elements(CASE json_typeof(n.value) WHEN 'array' THEN n.value ELSE '[]' END)
                 WITH ORDINALITY AS i (value, place)
        ) AS c
        WHERE n.depth < 64 AND json_typeof(n.value) IN ('object', 'array')
    )
    SELECT string_agg(depth || label || CASE json_typeof(value)
               WHEN 'object' THEN '{'
               WHEN 'array' THEN '['
               WHEN 'string' THEN 's' || octet_length(value #>> '{}') || ':' || (value #>> '{}')
               WHEN 'number' THEN '#' || plain_number(btrim(value::text, E' \t\r\n'))
               ELSE btrim(value::text, E' \t\r\n') END || E'\n', '' ORDER BY path COLLATE "C")
    INTO lines FROM nodes;
    RETURN lines;
EXCEPTION
    -- Half of a surrogate pair, for instance: nobody is given such a payload.
    WHEN data_exception THEN
        RETURN 'raw ' || payload::text || E'\n';
END $$;

-- What was asked for, as src/job/content.rs hashes it: by values, whatever the settings of the session.
CREATE OR REPLACE FUNCTION content_hash(
    type text, payload json, priority integer, max_attempts integer, delay interval, run_at timestamptz, tags text[], timeout interval
) RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT sha256(convert_to(
        E'queue-service content 2\ntype s' || octet_length($1) || ':' || $1 || E'\npriority ' || $3 || E'\n'
        || coalesce('max_attempts ' || $4 || E'\n', '')
        || coalesce('delay ' || nullif((extract(epoch FROM $5) * 1000000)::bigint, 0) || E'\n', '')
        || coalesce('run_at ' || CASE isfinite($6) WHEN true THEN (extract(epoch FROM $6) * 1000000)::bigint::text WHEN false THEN 'past' END
                    || E'\n', '')
        || coalesce((SELECT string_agg('tag s' || octet_length(tag) || ':' || tag || E'\n', '' ORDER BY place)
                     FROM unnest($7) WITH ORDINALITY AS t (tag, place)), '')
        || coalesce('timeout ' || (extract(epoch FROM $8) * 1000000)::bigint || E'\n', '')
        || E'payload\n' || payload_lines($2), 'UTF8'))
$$;

-- Which of these keys nobody can write now, by their places: a transaction that has not ended has written them. Writes nothing.
CREATE OR REPLACE FUNCTION held_keys(types text[], names text[]) RETURNS SETOF integer LANGUAGE plpgsql
SET lock_timeout = '1ms' AS $$
BEGIN
    FOR place IN 1 .. coalesce(cardinality(names), 0) LOOP
        BEGIN
            INSERT INTO job_keys (key, job_id, content_hash, type, name)
            VALUES (key_row(types[place], names[place]), gen_random_uuid(), '', types[place], names[place])
            ON CONFLICT DO NOTHING;
            RAISE SQLSTATE 'QS001';
        EXCEPTION
            WHEN SQLSTATE 'QS001' THEN NULL;
            WHEN lock_not_available THEN RETURN NEXT place;
        END;
    END LOOP;
END $$;

-- As before, but: keys and hashes as above, and only a real NUL is refused. Its settings are given in the same transaction, so that nobody
-- calls it without them.
CREATE OR REPLACE FUNCTION enqueue(
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
    earlier  record;
BEGIN
    SELECT coalesce(enqueue.max_attempts, t.max_attempts) INTO attempts
    FROM job_types t WHERE t.type = enqueue.type AND t.max_attempts IS NOT NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no job type %', quote_nullable(left(enqueue.type, 100)) USING ERRCODE = '22023',
            HINT = 'queue-service types lists those that there are';
    END IF;
    IF payload IS NULL OR octet_length(payload::text) > 524288 THEN
        RAISE EXCEPTION 'payload must be JSON of at most 524288 bytes (512 KiB)' USING ERRCODE = '22023';
    -- Two backslashes are one in the text, and no escape of what follows.
    ELSIF strpos(replace(payload::text, repeat(chr(92), 2), ''), chr(92) || 'u0000') > 0 THEN
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
        hash := content_hash(enqueue.type, payload, priority, enqueue.max_attempts, delay, run_at, tags, timeout);
        LOOP
            INSERT INTO job_keys (key, job_id, content_hash, type, name, value_hash, hash_version)
            VALUES (key_row(enqueue.type, idempotency_key), new_id, hash, enqueue.type, idempotency_key, hash, 2)
            ON CONFLICT DO NOTHING;
            EXIT WHEN FOUND;
            SELECT k.key, k.job_id, k.type, k.value_hash, k.hash_version, p.type AS job_type
            INTO taken
            FROM job_keys k LEFT JOIN LATERAL job_places(ARRAY[k.job_id]) AS p ON true
            WHERE (k.type = enqueue.type AND k.name = idempotency_key) OR (k.key = idempotency_key AND k.type IS NULL)
            ORDER BY k.type LIMIT 1;
            IF NOT FOUND THEN
                -- It has gone meanwhile, or the key has just become another type's.
                CONTINUE;
            ELSIF taken.job_type IS NULL THEN
                -- The job that the key named is past its retention.
                DELETE FROM job_keys k WHERE k.key = taken.key AND k.job_id = taken.job_id;
                CONTINUE;
            ELSIF taken.job_type <> enqueue.type THEN
                -- A version before this one wrote it, for a job of another type.
                UPDATE job_keys k SET type = taken.job_type, name = k.key
                WHERE k.key = taken.key AND k.job_id = taken.job_id AND k.type IS NULL;
                CONTINUE;
            ELSIF taken.hash_version = 2 THEN
                IF taken.value_hash = hash THEN
                    RETURN taken.job_id;
                END IF;
            ELSE
                -- Hashed by another formula: what the row says is compared.
                SELECT j.payload::json AS payload, j.priority, j.max_attempts, j.timeout_ms, j.tags INTO earlier
                FROM jobs_by_id(ARRAY[taken.job_id]) AS j;
                IF earlier.payload IS NULL THEN
                    -- It has just ended, or begun anew.
                    CONTINUE;
                ELSIF payload_lines(earlier.payload) = payload_lines(payload) AND earlier.priority = priority
                    AND coalesce(enqueue.max_attempts, earlier.max_attempts) = earlier.max_attempts
                    AND earlier.timeout_ms IS NOT DISTINCT FROM (extract(epoch FROM timeout) * 1000)::bigint
                    AND coalesce(earlier.tags, '{}') = coalesce(tags, '{}') THEN
                    RETURN taken.job_id;
                END IF;
            END IF;
            RAISE EXCEPTION 'the key belongs to job %, which was asked for with other content', taken.job_id
                USING ERRCODE = '23505', HINT = 'use a new key';
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
END $$; DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION enqueue SET search_path = %I, pg_temp', current_schema());
END $$;
