-- Which jobs of the type `batch-import` have written their items, and what they counted. Written in the transaction of
-- the items, so that a job that runs again (its worker died before it could say that it was done) changes nothing and
-- reports the same numbers, also when other imports have come between.
CREATE TABLE imports (
    job_id   uuid PRIMARY KEY,
    inserted integer NOT NULL,
    updated  integer NOT NULL
);
