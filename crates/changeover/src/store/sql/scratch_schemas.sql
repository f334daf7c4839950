-- scratch_schemas: what was made to verify tables with. Known by the comment that was made with it, not by its name alone.
-- $1 comment
SELECT n.nspname AS name
FROM pg_namespace n
WHERE n.nspname ~ '_verify_[0-9a-f]+$' AND obj_description(n.oid, 'pg_namespace') = $1
ORDER BY n.nspname;
