-- give_back: ends an activation without a switch: by whoever performs it, by an operator, or by anyone past its deadline.
-- $1 id, null for any  $2 outcome  $3 error  $4 only past the deadline
UPDATE {schema}.activations a
SET ended_at = clock_timestamp(), outcome = $2, error = $3
WHERE a.ended_at IS NULL AND ($1::bigint IS NULL OR a.id = $1)
  AND (NOT $4 OR a.deadline < clock_timestamp())
RETURNING a.id;
