-- pause_left: the seconds until the deadline, by the database's clock. No row: the activation is over.
-- $1 id  $2 token
SELECT extract(epoch FROM a.deadline - clock_timestamp())::double precision AS secs
FROM {schema}.activations a
WHERE a.id = $1 AND a.token = $2 AND a.ended_at IS NULL AND a.deadline > clock_timestamp();
