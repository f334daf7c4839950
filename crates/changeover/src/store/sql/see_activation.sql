-- see_activation: whoever prepares an activation is there still. No row: somebody ended it.
-- $1 id  $2 token
UPDATE {schema}.activations a
SET last_seen = clock_timestamp()
WHERE a.id = $1 AND a.token = $2 AND a.ended_at IS NULL
RETURNING a.id;
