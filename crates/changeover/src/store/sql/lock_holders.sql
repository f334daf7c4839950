-- lock_holders: who holds a lock on one of these relations, the oldest first.
-- $1 relations
SELECT DISTINCT l.virtualtransaction AS transaction, l.pid, a.application_name,
       extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, x.prepared))::double precision AS age_secs,
       coalesce(a.state, 'prepared transaction ' || x.gid, 'state not visible') AS doing
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN LATERAL (
    SELECT p.gid, p.prepared
    FROM pg_locks own JOIN pg_prepared_xacts p ON p.transaction = own.transactionid
    WHERE l.pid IS NULL AND own.pid IS NULL AND own.virtualtransaction = l.virtualtransaction
) x ON true
WHERE l.locktype = 'relation' AND l.granted AND l.relation = ANY ($1)
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  AND l.pid IS DISTINCT FROM pg_backend_pid()
  -- Who is in no transaction has ended it since we saw the lock.
  AND (a.xact_start IS NULL AND a.state IN ('idle', 'active')) IS NOT TRUE
ORDER BY age_secs DESC NULLS FIRST;
