-- enter_scratch: for writing tables that are worth nothing before all is written: no statement is too long, no commit has to
-- reach the disk.
SELECT set_config('statement_timeout', '0', true) AS statement_limit,
       set_config('synchronous_commit', 'off', true) AS durability,
       set_config('idle_in_transaction_session_timeout', '60s', true) AS idle_limit;
