-- enter_shard: the checkpoint of a shard, then admission. No position: somebody else is at it, the shards have met, or the
-- replay was started over.
-- Nobody's presence is marked: a version whose shards have not met cannot become active, and they cannot meet while one of
-- their checkpoints is locked. So a long write of theirs delays no activation.
-- $1 projector  $2 major  $3 shard  $4 attempt  $5 how durable the commit is, null for as the session has it
WITH claim AS MATERIALIZED (
    SELECT c.position
    FROM {schema}.checkpoints c
    WHERE c.projector = $1 AND c.major = $2 AND c.shard = $3 AND c.attempt = $4
    -- As every batch does: keeps out whoever writes, and nobody who only wants the row to stay.
    FOR NO KEY UPDATE OF c SKIP LOCKED
), held AS MATERIALIZED (
    SELECT max(claim.position) AS position FROM claim
)
SELECT held.position,
       (SELECT g.last_value FROM {schema}.generation g WHERE held.position IS NOT NULL) AS generation,
       set_config('idle_in_transaction_session_timeout', '60s', true) AS idle_limit,
       set_config('statement_timeout', '0', true) AS statement_limit,
       set_config('synchronous_commit', coalesce($5, current_setting('synchronous_commit')), true) AS durability
FROM held;
