-- Runs that are held by a program outside, and not by the process of the service that began them.
ALTER TABLE jobs
    -- NULL: the lease of the worker counts, which is in `workers`; else this one alone.
    ADD COLUMN lease_until timestamptz,
    -- What a sign of life gives it again; NULL: nothing, it lasts until the deadline.
    ADD COLUMN lease_ms integer,
    -- When the run is over whatever its holder does.
    ADD COLUMN deadline timestamptz;

-- Only such runs are in it, so claims of the service's own workers stay HOT updates.
CREATE INDEX jobs_lease_until ON jobs (lease_until) WHERE lease_until IS NOT NULL;
