-- lock_registration: one at a time creates tables or assumes a configuration. Whoever stops in the middle of it, frozen or cut
-- off, would hold up every other one for ever: the server ends its transaction.
SELECT pg_advisory_xact_lock('{schema}.instances'::regclass::oid::integer, 0)::text AS held,
       set_config('idle_in_transaction_session_timeout', '5s', true) AS idle_limit;
