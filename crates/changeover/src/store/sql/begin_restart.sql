-- begin_restart: what starting over waits for, it waits for briefly: whoever wants the same would queue up behind it.
SELECT pg_backend_pid() AS pid, set_config('lock_timeout', '2s', true) AS lock_limit,
       set_config('idle_in_transaction_session_timeout', '10s', true) AS idle_limit;
