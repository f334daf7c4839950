-- lock_keys: one append at a time for each bucket of row keys of inline projectors, in one sorted order. Tells the isolation
-- level, since only READ COMMITTED then sees the rows as the append before left them.
-- As with a stream, nothing is locked if the append is going to be refused.
-- $1 buckets, sorted  $2 generation decided upon
-- $3 how long the transaction may sit there without a statement from now on; null for the session's own limit
SELECT CASE WHEN pg_sequence_last_value('{schema}.generation') = $2 THEN (
           SELECT count(pg_advisory_xact_lock('{schema}.checkpoints'::regclass::oid::integer, bucket)::text)
           FROM unnest($1::integer[]) AS bucket)
       END AS held,
       current_setting('transaction_isolation') AS isolation,
       CASE WHEN $3 IS NOT NULL THEN set_config('idle_in_transaction_session_timeout', $3, true) END AS idle_limit;
