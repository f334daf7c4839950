-- lock_stream: one writer at a time for appends that expect no particular revision. In a statement before the append's,
-- whose snapshot then sees what the writer before it committed.
-- Nothing is locked if the append is going to be refused: its transaction may then wait for an activation, which may be waiting
-- for somebody who wants this lock.
-- $1 stream  $2 generation decided upon
SELECT CASE WHEN pg_sequence_last_value('{schema}.generation') = $2
       THEN pg_advisory_xact_lock('{schema}.event_position'::regclass::oid::integer, hashtext($1))::text END AS held;
