-- replayers: how many processes share a replay.
-- $1 projector and major version, as text
SELECT count(*) AS processes
FROM pg_locks l
WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
  AND l.classid = '{schema}.projector_states_pkey'::regclass
  AND l.objid::bigint = hashtext($1)::bigint & 4294967295
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
