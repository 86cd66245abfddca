-- Jobs that have failed before, for those who list what is being retried: few among the waiting ones. A claim changes nothing
-- of it, so it stays a HOT update. The cast is that of the view, or the planner would not see that it fits.
CREATE INDEX jobs_failed_before ON jobs (id) WHERE (errors::text) IS NOT NULL;
