-- The target of the job type `batch-import`.
CREATE TABLE imported_items (
    namespace   text        NOT NULL,
    id          text        NOT NULL,
    data        json        NOT NULL,
    job_id      uuid        NOT NULL,
    imported_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (namespace, id)
);
