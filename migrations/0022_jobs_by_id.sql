-- Jobs by id, as `all_jobs` shows them, in no order; unknown ids are left out. Live ones are looked for first. Of the
-- finished ones only the partitions are opened in which `job_places` has found them, and their locks are given back at
-- once: a look-up through the view opens all partitions, nearly a thousand locks at full retention.
CREATE FUNCTION jobs_by_id(ids uuid[]) RETURNS SETOF all_jobs LANGUAGE plpgsql
SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    missing uuid[] := ids;
    found   uuid[];
    job     all_jobs;
    place   record;
BEGIN
    -- Again at the end: a job may end, or come back by a retry, between two looks.
    FOR look IN 1..3 LOOP
        found := '{}';
        -- By its status the planner leaves the finished ones out.
        FOR job IN SELECT v.* FROM all_jobs v WHERE v.id = ANY (missing) AND v.status IN ('pending', 'processing') LOOP
            RETURN NEXT job;
            found := found || job.id;
        END LOOP;
        IF cardinality(found) > 0 THEN
            missing := ARRAY(SELECT unnest(missing) EXCEPT SELECT unnest(found));
        END IF;
        IF cardinality(missing) = 0 THEN
            RETURN;
        END IF;
        found := NULL;
        FOR place IN SELECT p.status, p.day, array_agg(p.id) AS ids FROM job_places(missing) p GROUP BY 1, 2 LOOP
            found := coalesce(found, '{}');
            CONTINUE WHEN place.day IS NULL;
            BEGIN
                FOR job IN EXECUTE format(
                    'SELECT v.* FROM all_jobs v WHERE v.id = ANY ($1) AND v.status = %L AND v.finished_at >= %L AND v.finished_at < %L',
                    place.status, place.day::timestamp AT TIME ZONE 'UTC', (place.day + 1)::timestamp AT TIME ZONE 'UTC')
                    USING place.ids
                LOOP
                    RETURN NEXT job;
                    found := found || job.id;
                END LOOP;
                RAISE SQLSTATE 'QS001';
            EXCEPTION WHEN SQLSTATE 'QS001' THEN
                -- What was read stays; the locks are given back.
                NULL;
            END;
        END LOOP;
        -- They are nowhere.
        EXIT WHEN found IS NULL;
        missing := ARRAY(SELECT unnest(missing) EXCEPT SELECT unnest(found));
        EXIT WHEN cardinality(missing) = 0;
    END LOOP;
END $$;
