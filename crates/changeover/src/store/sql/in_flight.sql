-- in_flight: every lease and every presence, with whoever holds it. A prepared transaction has no pid.
SELECT l.virtualtransaction AS transaction, l.pid, a.application_name,
       CASE WHEN l.classid = '{schema}.events'::regclass THEN 'lease' ELSE 'presence' END AS holds,
       extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, x.prepared))::double precision AS age_secs,
       -- Its state is not shown to every role, and not of a session that ended between the two looks.
       coalesce(a.state, 'prepared transaction ' || x.gid, 'state not visible') AS doing
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN LATERAL (
    -- Until the server is restarted it goes by the virtual number of the session that prepared it.
    SELECT p.gid, p.prepared
    FROM pg_locks own JOIN pg_prepared_xacts p ON p.transaction = own.transactionid
    WHERE l.pid IS NULL AND own.pid IS NULL AND own.virtualtransaction = l.virtualtransaction
) x ON true
WHERE l.locktype = 'advisory' AND l.objsubid = 2
  AND l.classid IN ('{schema}.events'::regclass, '{schema}.projector_states'::regclass)
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  AND l.pid IS DISTINCT FROM pg_backend_pid()
ORDER BY age_secs DESC NULLS FIRST;
