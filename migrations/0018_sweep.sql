-- What the repair sweep judges by, so that it publishes nothing that the broker still has (docs/adr/0026), and where jobs are found by id.

-- One row per sweep. A job that was due and pending at `at`, and whose wake-up was not in the outbox then, has it in the
-- stream at `last_seq` or before, or nowhere.
CREATE TABLE sweep_marks (
    at          timestamptz NOT NULL PRIMARY KEY,
    -- All transactions before this one were over: what they wrote was seen.
    horizon     bigint      NOT NULL,
    -- When the server made the stream, and how far it had come.
    stream      text        NOT NULL,
    last_seq    bigint      NOT NULL,
    -- Due jobs that were in the outbox; and the lanes (`<type>.<lane>`) that had too many to list.
    unpublished uuid[]      NOT NULL,
    full_lanes  text[]      NOT NULL
);

-- The last transaction that put jobs of a lane back into the outbox. An older mark says nothing of that lane any more.
CREATE TABLE rearmed_lanes (
    lane       text   NOT NULL PRIMARY KEY,
    sweep      uuid   NOT NULL,
    written_by bigint NOT NULL
);

-- Where jobs are: their type and status, and the day (UTC) on which those ended that are over. A job that is nowhere is left out.
-- Live ones are looked for first, then the days from that of the id on, less one for clocks that differ. One day at a
-- time, and its locks are given back at once: at full retention a caller's transaction would else hold nearly a thousand.
CREATE FUNCTION job_places(ids uuid[]) RETURNS TABLE (id uuid, type text, status text, day date) LANGUAGE plpgsql
SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    missing  uuid[] := ids;
    found    uuid[];
    types    text[];
    statuses text[];
    first    date;
    last     date := (clock_timestamp() AT TIME ZONE 'UTC')::date + 1;
    today    date;
    ended    text;
    leaf     text;
    leaves   text;
BEGIN
    -- Again at the end: who retries a job by hand brings it back from the days that were not looked at yet.
    FOR look IN 1..2 LOOP
        SELECT array_agg(j.id), array_agg(j.type), array_agg(j.status) INTO found, types, statuses FROM jobs j WHERE j.id = ANY (missing);
        IF found IS NOT NULL THEN
            RETURN QUERY SELECT f.*, NULL::date FROM unnest(found, types, statuses) AS f;
            missing := ARRAY(SELECT unnest(missing) EXCEPT SELECT unnest(found));
        END IF;
        IF look = 2 OR cardinality(missing) = 0 THEN
            RETURN;
        END IF;
        -- The time of a UUID v7 is its first 48 bits, in milliseconds. Others have none, and are looked for everywhere.
        SELECT min(CASE WHEN get_byte(uuid_send(i), 6) >> 4 = 7
                        THEN least((to_timestamp(('x' || left(replace(i::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
                                    AT TIME ZONE 'UTC')::date, last)
                        ELSE last - 4000 END)
        INTO first FROM unnest(missing) AS i;
        IF first < last - 400 THEN
            SELECT least(min(right(c.relname, 8))::date, last) INTO first
            FROM pg_inherits p JOIN pg_class c ON c.oid = p.inhrelid
            WHERE p.inhparent IN ('finished_completed'::regclass, 'finished_failed'::regclass, 'finished_cancelled'::regclass);
        END IF;
        today := first;
        WHILE cardinality(missing) > 0 LOOP
            leaves := NULL;
            FOREACH ended IN ARRAY ARRAY['completed', 'failed', 'cancelled'] LOOP
                leaf := 'finished_' || ended || '_' || to_char(today, 'YYYYMMDD');
                IF to_regclass(leaf) IS NOT NULL THEN
                    -- With a limit the planner can't but look for one id after the other.
                    leaves := concat_ws(' UNION ALL ', leaves,
                        format('(SELECT f.id, f.type, %L FROM %I f WHERE f.id = w.id LIMIT 1)', ended, leaf));
                END IF;
            END LOOP;
            IF leaves IS NOT NULL THEN
                BEGIN
                    EXECUTE format('SELECT array_agg(p.id), array_agg(p.type), array_agg(p.status) FROM unnest($1) AS w (id)
                                    CROSS JOIN LATERAL (%s) AS p (id, type, status)', leaves)
                    INTO found, types, statuses USING missing;
                    -- What a block took is given back when it fails; what it has found stays.
                    RAISE SQLSTATE 'QS001';
                EXCEPTION
                    WHEN SQLSTATE 'QS001' THEN
                        IF found IS NOT NULL THEN
                            RETURN QUERY SELECT f.*, today FROM unnest(found, types, statuses) AS f;
                            missing := ARRAY(SELECT unnest(missing) EXCEPT SELECT unnest(found));
                        END IF;
                    WHEN undefined_table THEN
                        -- A day that was over has gone meanwhile: look at what is left of it.
                        CONTINUE;
                END;
            END IF;
            EXIT WHEN today < first;
            today := CASE WHEN today >= last THEN first - 1 ELSE today + 1 END;
        END LOOP;
    END LOOP;
END $$;
