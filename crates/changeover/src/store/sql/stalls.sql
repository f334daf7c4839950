-- stalls: where a projector is stalled.
-- $1 projector
SELECT c.major, c.error_position FROM {schema}.checkpoints c
WHERE c.projector = $1 AND c.stalled_since IS NOT NULL;
