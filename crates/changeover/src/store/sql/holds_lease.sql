-- holds_lease: whether this session's transaction has an append in flight.
SELECT EXISTS (
    SELECT FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.pid = pg_backend_pid()
      AND l.classid = '{schema}.events'::regclass
) AS held;
