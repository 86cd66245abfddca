-- Tables whose rows come and go all the time: pages at their end that fell empty are kept for what comes next. To give them back
-- to the disk, a vacuum would lock out everybody for moments.
ALTER TABLE jobs SET (vacuum_truncate = off, toast.vacuum_truncate = off);
ALTER TABLE outbox SET (vacuum_truncate = off, toast.vacuum_truncate = off);
ALTER TABLE held SET (vacuum_truncate = off, toast.vacuum_truncate = off);
ALTER TABLE job_count_deltas SET (vacuum_truncate = off);
