-- The truth about jobs. Live and finished ones apart: the live table stays small and hot whatever has finished, and
-- retention drops whole partitions. The CHECKs repeat the invariants of src/job/state.rs.

CREATE TABLE jobs (
    id              uuid        NOT NULL PRIMARY KEY,
    type            text        NOT NULL,
    status          text        NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'processing')),
    priority        smallint    NOT NULL DEFAULT 0 CHECK (priority BETWEEN -9 AND 9),
    attempt         smallint    NOT NULL DEFAULT 0 CHECK (attempt BETWEEN 0 AND max_attempts),
    max_attempts    smallint    NOT NULL CHECK (max_attempts BETWEEN 1 AND 100),
    -- The fencing token: one higher at each claim, never reset.
    run             bigint      NOT NULL DEFAULT 0,
    timeout_ms      bigint,
    tags            text[],
    idempotency_key text,
    -- json, not jsonb: kept as sent, and a short text like 1e300 is not blown up when it is read back.
    payload         json        NOT NULL,
    -- One entry per failed attempt: {attempt, at, message, kind}.
    errors          json,
    progress        json,
    checkpoint      json,
    worker_id       text,
    cancel_reason   text,
    cancel_requested_at timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    run_at          timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    CHECK (status <> 'processing' OR (worker_id IS NOT NULL AND started_at IS NOT NULL))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);

-- No index on anything that a claim changes (status, attempt, run, worker_id, started_at), so that claims are HOT
-- updates. run_at serves the sweep (due and overtaken), the age of the oldest waiting job and the scheduled ones.
CREATE INDEX jobs_run_at ON jobs (run_at);
CREATE INDEX jobs_type ON jobs (type, id);
CREATE INDEX jobs_tags ON jobs USING gin (tags) WHERE tags IS NOT NULL;

-- Finished jobs by status, then by day of finishing: retention differs by status and drops whole days.
CREATE TABLE finished_jobs (
    id              uuid        NOT NULL,
    type            text        NOT NULL,
    status          text        NOT NULL CHECK (status IN ('completed', 'failed', 'cancelled')),
    priority        smallint    NOT NULL,
    attempt         smallint    NOT NULL,
    max_attempts    smallint    NOT NULL,
    run             bigint      NOT NULL,
    timeout_ms      bigint,
    tags            text[],
    idempotency_key text,
    payload         json        NOT NULL,
    result          json,
    errors          json,
    progress        json,
    worker_id       text,
    cancel_reason   text,
    created_at      timestamptz NOT NULL,
    run_at          timestamptz NOT NULL,
    started_at      timestamptz,
    finished_at     timestamptz NOT NULL
) PARTITION BY LIST (status);

CREATE TABLE finished_completed PARTITION OF finished_jobs FOR VALUES IN ('completed') PARTITION BY RANGE (finished_at);
CREATE TABLE finished_failed    PARTITION OF finished_jobs FOR VALUES IN ('failed')    PARTITION BY RANGE (finished_at);
CREATE TABLE finished_cancelled PARTITION OF finished_jobs FOR VALUES IN ('cancelled') PARTITION BY RANGE (finished_at);

CREATE INDEX finished_jobs_id ON finished_jobs (id);
CREATE INDEX finished_jobs_type ON finished_jobs (type, id);
CREATE INDEX finished_jobs_tags ON finished_jobs USING gin (tags) WHERE tags IS NOT NULL;

-- Makes the partitions of one day (UTC) for all three statuses. Safe to repeat, and when replicas race. Made apart and
-- then attached, because CREATE … PARTITION OF would lock every reader and writer of the parent out for a moment.
CREATE FUNCTION make_finished_partitions(day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    child  text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(current_schema() || '.make_finished_partitions', 0));
    FOREACH parent IN ARRAY ARRAY['finished_completed', 'finished_failed', 'finished_cancelled'] LOOP
        child := parent || '_' || to_char(day, 'YYYYMMDD');
        IF to_regclass(child) IS NULL THEN
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', child, parent);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child,
                day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
        END IF;
    END LOOP;
END $$;

SELECT make_finished_partitions((now() AT TIME ZONE 'UTC')::date + d) FROM generate_series(0, 7) AS d;

-- A job's errors with one more: {attempt, at, message, kind}. The newest hundred are kept.
CREATE FUNCTION with_error(errors json, attempt smallint, message text, kind text) RETURNS json LANGUAGE sql AS $$
    SELECT jsonb_path_query_array(
        coalesce(errors::jsonb, '[]') || jsonb_build_object(
            'attempt', attempt, 'message', message, 'kind', kind,
            'at', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')),
        '$[last-99 to last]')::json
$$;

-- Both kinds in one, for reads; JSON as text, exactly as it was sent. The columns are those of the entity in
-- src/store/entity/job.rs.
CREATE VIEW all_jobs AS
    SELECT id, type, status, priority, attempt, max_attempts, run, timeout_ms, tags, idempotency_key,
           payload::text AS payload, NULL::text AS result, errors::text AS errors,
           errors -> -1 ->> 'message' AS error, progress::text AS progress,
           worker_id, cancel_reason, created_at, run_at, started_at, NULL::timestamptz AS finished_at
    FROM jobs
    UNION ALL
    SELECT id, type, status, priority, attempt, max_attempts, run, timeout_ms, tags, idempotency_key,
           payload::text, result::text, errors::text, errors -> -1 ->> 'message', progress::text,
           worker_id, cancel_reason, created_at, run_at, started_at, finished_at
    FROM finished_jobs;
