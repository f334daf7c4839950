-- schema_exists: whether a schema of that name is there.
-- $1 name
SELECT EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = $1) AS present;
