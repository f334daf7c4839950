-- states: every projector version.
SELECT s.projector, s.version, s.state, s.delivery, s.fingerprint, s.activation IS NOT NULL AS in_activation,
       s.follow, s.changed_by, s.changed_at
FROM {schema}.projector_states s
ORDER BY s.projector, s.version;
