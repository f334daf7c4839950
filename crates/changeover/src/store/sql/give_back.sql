-- give_back: ends an activation without a switch: by whoever performs it, by an operator, or by anyone past its deadline.
-- One that is being prepared has none: it is past it once whoever prepares it was not heard of any more.
-- $1 id  $2 outcome  $3 error  $4 only past the deadline  $5 seconds of silence
UPDATE {schema}.activations a
SET ended_at = clock_timestamp(), outcome = $2,
    error = CASE WHEN $4 AND a.activating_at IS NULL THEN 'whoever prepared it was not heard of any more' ELSE $3 END
WHERE a.ended_at IS NULL AND a.id = $1
  AND (NOT $4 OR a.deadline < clock_timestamp()
       OR a.activating_at IS NULL AND a.last_seen < clock_timestamp() - $5 * interval '1 second')
RETURNING a.id;
