-- lock_index: for whoever builds an index, until its session ends or the lock is given back: the server goes on with what a process
-- that is killed has begun. Never waited for: whoever builds beside others waits for everybody who waits.
-- $1 the index
SELECT pg_try_advisory_lock('{schema}.checkpoints_pkey'::regclass::oid::integer, hashtext($1)) AS locked;
