-- lock_stream: one writer at a time for appends that expect no particular revision. In a statement before the append's,
-- whose snapshot then sees what the writer before it committed.
-- $1 stream
SELECT pg_advisory_xact_lock('{schema}.event_position'::regclass::oid::integer, hashtext($1))::text AS held;
