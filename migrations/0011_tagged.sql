-- Those that have tags at all, newest first: a list by tag need not walk through all that have none. Where a tag is rare, the index
-- of tags is used instead.
CREATE INDEX jobs_tagged ON jobs (id) WHERE tags IS NOT NULL;
CREATE INDEX finished_jobs_tagged ON finished_jobs (id) WHERE tags IS NOT NULL;
