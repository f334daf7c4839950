-- in_the_way: who holds a lock on something in a schema, or makes a session wait right now.
-- $1 schema  $2 the session that wants it
SELECT h.transaction, h.pid, a.application_name,
       extract(epoch FROM clock_timestamp() - a.xact_start)::double precision AS age_secs,
       coalesce(a.state, CASE WHEN h.pid IS NULL THEN 'prepared transaction' ELSE 'state not visible' END) AS doing
FROM (
    SELECT DISTINCT l.virtualtransaction AS transaction, l.pid
    FROM pg_locks l
    WHERE l.pid IS DISTINCT FROM $2 AND l.pid IS DISTINCT FROM pg_backend_pid()
      AND (l.pid = ANY (pg_blocking_pids($2))
           OR l.locktype = 'relation' AND l.granted
              AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
              AND l.relation IN (
                  SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1
              ))
) h LEFT JOIN pg_stat_activity a ON a.pid = h.pid
-- Who is in no transaction has ended it since we saw the lock, unless a lock of the session makes us wait.
WHERE (a.xact_start IS NULL AND a.state IN ('idle', 'active')) IS NOT TRUE OR h.pid = ANY (pg_blocking_pids($2))
ORDER BY age_secs DESC NULLS FIRST;
