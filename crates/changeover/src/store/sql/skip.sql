-- skip: moves a stalled projector past the one event that stalls it, and remembers that.
-- $1 projector  $2 position  $3 who
WITH stalled AS (
    SELECT c.projector, c.major, c.shard, c.error
    FROM {schema}.checkpoints c
    WHERE c.projector = $1 AND c.stalled_since IS NOT NULL AND c.error_position = $2
    FOR NO KEY UPDATE
), remembered AS (
    INSERT INTO {schema}.skipped_events (projector, major, position, error, skipped_by)
    SELECT s.projector, s.major, $2, s.error, $3 FROM stalled s
    RETURNING major
)
UPDATE {schema}.checkpoints c
SET position = $2, stalled_since = NULL, error = NULL, error_position = NULL, error_type = NULL,
    updated_at = clock_timestamp()
FROM stalled s, remembered r
WHERE c.projector = s.projector AND c.major = s.major AND c.shard = s.shard AND r.major = s.major AND c.position < $2
RETURNING c.major, c.position;
