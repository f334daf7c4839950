-- begin_pruning: limits for a transaction that drops tables: it never waits long for a lock, since others queue up behind
-- whoever does, and it may not stop in the middle. Says which session it runs in.
SELECT pg_backend_pid() AS pid, set_config('lock_timeout', '100ms', true) AS lock_limit,
       set_config('statement_timeout', '30s', true) AS statement_limit;
