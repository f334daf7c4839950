-- lock_keys: one append at a time for each bucket of row keys of inline projectors, in one sorted order. Tells the isolation
-- level, since only READ COMMITTED then sees the rows as the append before left them.
-- As with a stream, nothing is locked if the append is going to be refused.
-- $1 buckets, sorted  $2 generation decided upon
SELECT count(pg_advisory_xact_lock('{schema}.checkpoints'::regclass::oid::integer, bucket)::text),
       current_setting('transaction_isolation') AS isolation
FROM {schema}.generation g, unnest($1::integer[]) AS bucket
WHERE g.last_value = $2;
