-- no-transaction
-- A publication of all tables needs to know what tells the rows of each apart, else no row of it can be changed or
-- deleted (SQLSTATE 55000). These have no primary key: of finished jobs it would need the day in it, and deltas come and
-- go in bulk. Their whole rows tell them apart, which costs nothing unless somebody replicates them (wal_level = logical).

-- As before, and: new partitions are made so, too; whoever comes second takes what the first has made, instead of waiting
-- for a lock that anybody could hold; and it runs with the rights of its owner, so that partitions belong to whom their
-- parent belongs to, and the service's user needs no right to make tables.
CREATE OR REPLACE FUNCTION make_finished_partitions(day date) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    parent text;
    child  text;
BEGIN
    FOREACH parent IN ARRAY ARRAY['finished_completed', 'finished_failed', 'finished_cancelled'] LOOP
        child := parent || '_' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN to_regclass(child) IS NOT NULL;
        BEGIN
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', child, parent);
            EXECUTE format('ALTER TABLE %I REPLICA IDENTITY FULL', child);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child,
                day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
        EXCEPTION WHEN duplicate_table OR unique_violation THEN
            NULL; -- Another replica was quicker.
        END;
    END LOOP;
END $$;

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION make_finished_partitions SET search_path = %I, pg_temp', current_schema());
    REVOKE EXECUTE ON FUNCTION make_finished_partitions FROM PUBLIC;
END $$;

-- A table at a time: nobody waits for more than one of them.
DO $$
DECLARE
    keyless regclass;
BEGIN
    FOR keyless IN
        SELECT c.oid FROM pg_class c
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND c.relreplident = 'd'
          AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
    LOOP
        EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', keyless);
        COMMIT;
    END LOOP;
END $$;
