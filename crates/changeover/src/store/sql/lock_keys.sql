-- lock_keys: one append at a time for each bucket of row keys of inline projectors, in one sorted order.
-- $1 buckets, sorted
SELECT count(pg_advisory_xact_lock('{schema}.checkpoints'::regclass::oid::integer, bucket)::text)
FROM unnest($1::integer[]) AS bucket;
