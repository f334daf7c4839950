-- start_activation: opens the record of an upgrade. It pauses nobody yet.
-- $1 token  $2 who  $3 from  $4 to  $5 whether it goes back  $6 whether what it retires is followed
INSERT INTO {schema}.activations (token, requested_by, from_configuration, to_configuration, rollback, keep_following)
VALUES ($1, $2, $3, $4, $5, $6)
RETURNING id;
