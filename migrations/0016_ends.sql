-- no-transaction
-- What a job keeps beyond the end of its run. All of it may be missing, so that an older version writes rows as before.

-- Of the last run that a program outside has ended, or that was ended for it: its number, how it ended (result, error, release,
-- cancel, timeout, lost), a hash of what was said, and where the job stood then. Whoever says the same again is answered the same.
ALTER TABLE jobs
    ADD COLUMN IF NOT EXISTS end_run    bigint,
    ADD COLUMN IF NOT EXISTS end_kind   text,
    ADD COLUMN IF NOT EXISTS end_hash   bytea,
    ADD COLUMN IF NOT EXISTS end_status text;

-- And for a retry by hand: what the last run has kept, and whose trace it is.
ALTER TABLE finished_jobs
    ADD COLUMN IF NOT EXISTS checkpoint  json,
    ADD COLUMN IF NOT EXISTS traceparent text,
    ADD COLUMN IF NOT EXISTS end_run     bigint,
    ADD COLUMN IF NOT EXISTS end_kind    text,
    ADD COLUMN IF NOT EXISTS end_hash    bytea,
    ADD COLUMN IF NOT EXISTS end_status  text;
