-- enter: presence, admission, claim; in that order, as for an append. No position: somebody else is at this checkpoint, or shards of a
-- parallel replay are.
-- The server ends the transaction if it then sits there without a statement for too long, or if a statement takes too long.
-- $1 generation decided upon  $2 projector  $3 major  $4 shard  $5 the first limit
-- $6 the second one, null for the session's own  $7 the attempt at a replay, null outside of one
WITH presence AS MATERIALIZED (
    SELECT pg_advisory_xact_lock_shared('{schema}.projector_states'::regclass::oid::integer, 0)::text AS held
), admission AS MATERIALIZED (
    SELECT (SELECT g.last_value FROM {schema}.generation g WHERE presence.held IS NOT NULL) AS generation
    FROM presence
), claim AS MATERIALIZED (
    SELECT CASE WHEN c.parallel_to IS NULL THEN c.position END AS position, c.inline, c.error
    FROM admission, {schema}.checkpoints c
    WHERE admission.generation = $1 AND c.projector = $2 AND c.major = $3 AND c.shard = $4
      AND ($7::integer IS NULL OR c.attempt = $7)
    -- Whoever reads the tables for long may hold the row FOR KEY SHARE: that keeps them from being dropped, and nobody out.
    FOR NO KEY UPDATE OF c SKIP LOCKED
)
SELECT admission.generation, claim.position, claim.inline, claim.error,
       set_config('idle_in_transaction_session_timeout', $5, true) AS idle_limit,
       set_config('statement_timeout', coalesce($6, current_setting('statement_timeout')), true) AS statement_limit
FROM admission LEFT JOIN claim ON true;
