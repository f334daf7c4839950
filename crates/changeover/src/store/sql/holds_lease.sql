-- holds_lease: whether this session's transaction has an append in flight, or locks that one in flight may be waiting for.
SELECT EXISTS (
    SELECT FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.pid = pg_backend_pid()
      AND l.classid IN ('{schema}.events'::regclass, '{schema}.event_position'::regclass, '{schema}.checkpoints'::regclass)
) AS held;
