-- overdue: whether an activation is past its deadline, or whoever prepared it was not heard of any more.
-- $1 seconds of silence
SELECT EXISTS (
    SELECT FROM {schema}.activations a
    WHERE a.ended_at IS NULL
      AND (a.deadline < clock_timestamp()
           OR a.activating_at IS NULL AND a.last_seen < clock_timestamp() - $1 * interval '1 second')
) AS overdue;
