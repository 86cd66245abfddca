-- What each worker has in hand, a row per claim statement: those who ask what runs need not read all that waits. A row names at
-- least the jobs of its claim that still run; it is shortened and removed behind them. Runs outside have `lease_until` instead.
-- An index of what runs would do the same and take a fifth of a drain's rate: claims would no longer be HOT updates.
CREATE TABLE held (
    id        uuid   NOT NULL PRIMARY KEY,
    worker_id text   NOT NULL,
    job_ids   uuid[] NOT NULL
);

INSERT INTO held (id, worker_id, job_ids)
SELECT gen_random_uuid(), worker_id, array_agg(id) FROM jobs
WHERE status = 'processing' AND lease_until IS NULL GROUP BY worker_id;
