-- register_version: makes the row of a version, or takes a retired one back into replaying.
-- $1 projector  $2 version  $3 state  $4 delivery  $5 fingerprint  $6 who
INSERT INTO {schema}.projector_states AS s (projector, version, state, delivery, fingerprint, changed_by)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT ON CONSTRAINT projector_states_pkey DO UPDATE
SET state = excluded.state, changed_by = excluded.changed_by, changed_at = clock_timestamp()
WHERE s.state = 'retired' AND s.fingerprint = excluded.fingerprint
RETURNING state;
