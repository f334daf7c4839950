-- join_replay: one more process shares a replay, until its transaction ends.
-- $1 projector and major version, as text
SELECT pg_advisory_xact_lock_shared('{schema}.projector_states_pkey'::regclass::oid::integer, hashtext($1))::text AS held,
       set_config('idle_in_transaction_session_timeout', '0', true) AS idle_limit;
