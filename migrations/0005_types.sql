-- Types that are registered while the service runs.
ALTER TABLE job_types
    -- As it was sent; NULL: nothing is defined here, the row holds a pause only.
    ADD COLUMN definition json,
    -- Whether a handler that was found on the bus brought it, rather than somebody who asked.
    ADD COLUMN discovered boolean NOT NULL DEFAULT false,
    -- Since when nobody has answered for it; NULL: somebody does, or nobody was needed yet.
    ADD COLUMN unattended_since timestamptz;
