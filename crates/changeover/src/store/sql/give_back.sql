-- give_back: ends an activation without a switch: by whoever performs it, by an operator, or by anyone past its deadline.
-- $1 id, null for any  $2 outcome  $3 error  $4 only past the deadline
WITH ended AS (
    UPDATE {schema}.activations a
    SET ended_at = clock_timestamp(), outcome = $2, error = $3
    WHERE a.ended_at IS NULL AND ($1::bigint IS NULL OR a.id = $1)
      AND (NOT $4 OR a.deadline < clock_timestamp())
    RETURNING a.id
), moved AS (
    UPDATE {schema}.projector_states s
    SET state = CASE s.state WHEN 'activating' THEN 'replaying' ELSE s.state END,
        activation = NULL, changed_at = clock_timestamp()
    FROM ended
    WHERE s.activation = ended.id
    RETURNING s.projector
)
SELECT e.id, (SELECT count(*) FROM moved) AS moved FROM ended e;
