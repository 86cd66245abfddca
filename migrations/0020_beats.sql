-- When a worker reported last; `expires_at` alone does not tell it, since leases differ and a worker that ends gives its own up.
-- NULL: a version before this one reports.
ALTER TABLE workers ADD COLUMN beat_at timestamptz;
