-- claim_shard: takes a shard for this process alone, until its transaction ends; or does not.
-- $1 projector, major version and shard, as text
SELECT pg_try_advisory_xact_lock('{schema}.checkpoints_pkey'::regclass::oid::integer, hashtext($1)) AS claimed;
