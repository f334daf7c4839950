-- forget_instances: one that says goodbye, and those not seen for long.
-- $1 id, null for none  $2 seconds
DELETE FROM {schema}.instances i
WHERE i.id = $1 OR i.last_seen < clock_timestamp() - $2 * interval '1 second'
RETURNING i.id;
