-- The W3C traceparent of whoever asked for the job; NULL: none was given, and the job's id is the trace.
ALTER TABLE jobs ADD COLUMN traceparent text;
