-- Lists by type go by this one. Of `id` itself only the primary key knows now: just after a vacuum of a table that was empty the planner
-- takes all indexes for equally short and finds jobs by id in the one by type, by reading all of it for each.
CREATE INDEX jobs_by_type ON jobs (type, uuid_send(id));
DROP INDEX jobs_type;
