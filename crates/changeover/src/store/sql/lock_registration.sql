-- lock_registration: one at a time creates tables or assumes a configuration.
SELECT pg_advisory_xact_lock('{schema}.instances'::regclass::oid::integer, 0)::text AS held;
