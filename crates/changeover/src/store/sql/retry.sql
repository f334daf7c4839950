-- retry: lets a stalled projector try again.
-- $1 projector
UPDATE {schema}.checkpoints
SET stalled_since = NULL, error = NULL, error_position = NULL, error_type = NULL, updated_at = clock_timestamp()
WHERE projector = $1 AND stalled_since IS NOT NULL
RETURNING major, position;
