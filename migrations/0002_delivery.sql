-- What must still be told to the broker, who works, and what must not happen twice.

-- One row per batch, not per job: a row per job was measured at 15 to 30 % of the whole SQL work. `jobs` that share a
-- row are published together; the row goes when the broker has acknowledged all of them.
CREATE TABLE outbox (
    id         uuid        NOT NULL PRIMARY KEY,
    kind       text        NOT NULL CHECK (kind IN ('wake-up', 'dead-letter')),
    publish_at timestamptz NOT NULL,
    job_ids    uuid[]      NOT NULL,
    -- For a wake-up `<type>.<lane>`, for a dead letter `<type>.<run>`; as long as job_ids.
    targets    text[]      NOT NULL CHECK (cardinality(targets) = cardinality(job_ids))
);
CREATE INDEX outbox_publish_at ON outbox (publish_at);

-- One row per worker process. All its leases are this one: an expired row means that its jobs may be taken over.
CREATE TABLE workers (
    id          text        NOT NULL PRIMARY KEY,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz NOT NULL,
    -- For each `<type>.<lane>` the highest run_at that it has claimed: what is older and still pending was overtaken.
    claimed     json        NOT NULL DEFAULT '{}'
);

-- Whose turn it is: of all replicas one does a duty in each period.
CREATE TABLE duties (
    name    text        NOT NULL PRIMARY KEY,
    next_at timestamptz NOT NULL
);

-- One idempotency key, one job: the primary key decides, also between replicas.
CREATE TABLE job_keys (
    key          text        NOT NULL PRIMARY KEY,
    job_id       uuid        NOT NULL,
    content_hash bytea       NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX job_keys_created_at ON job_keys (created_at);

-- What is set for a type at run time.
CREATE TABLE job_types (
    type       text        NOT NULL PRIMARY KEY,
    paused_at  timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- Statistics that never scan: every change of a job's status inserts a delta in its own transaction, so the sum is
-- exact; the deltas are folded now and then. Finished jobs count under their day, so that retention takes them off.
CREATE TABLE job_counts (
    type   text   NOT NULL,
    status text   NOT NULL,
    day    date   NOT NULL,
    n      bigint NOT NULL,
    PRIMARY KEY (type, status, day)
) WITH (fillfactor = 50);

CREATE TABLE job_count_deltas (
    type   text   NOT NULL,
    status text   NOT NULL,
    day    date   NOT NULL,
    n      bigint NOT NULL
);
