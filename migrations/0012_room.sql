-- Room for a claim's version of every row of a page, which is longer than the one before: with 50 a sixth of all claims went to
-- another page, and into every index with it.
ALTER TABLE jobs SET (fillfactor = 40);

-- Rows that name the jobs of a whole batch live for moments. Kept in one piece as long as they fit into a page, instead of being
-- compressed and put aside from 2 kB on.
ALTER TABLE held SET (toast_tuple_target = 8160);
ALTER TABLE outbox SET (toast_tuple_target = 8160);
