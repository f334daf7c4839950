-- start_activation: opens the record of an upgrade. It pauses nobody yet.
-- $1 token  $2 who  $3 from  $4 to
INSERT INTO {schema}.activations (token, requested_by, from_configuration, to_configuration)
VALUES ($1, $2, $3, $4)
RETURNING id;
