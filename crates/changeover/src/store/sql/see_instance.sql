-- see_instance: an instance says that it is there.
-- $1 id  $2 application  $3 application version  $4 configuration  $5 address  $6 readiness
INSERT INTO {schema}.instances (id, application, application_version, configuration, address, readiness)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT ON CONSTRAINT instances_pkey DO UPDATE
SET readiness = excluded.readiness, last_seen = clock_timestamp()
RETURNING id;
