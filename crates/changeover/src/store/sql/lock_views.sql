-- lock_views: one at a time moves the views of a projector.
-- $1 projector
SELECT pg_advisory_xact_lock('{schema}.views'::regclass::oid::integer, hashtext($1))::text AS held;
