-- release: puts back what an activation was switching that has ended. A statement of its own, after give_back in the same
-- transaction: give_back may have waited for the mark of that very activation, which its own snapshot then does not show.
UPDATE {schema}.projector_states s
SET state = CASE s.state WHEN 'activating' THEN 'replaying' ELSE s.state END,
    activation = NULL, changed_at = clock_timestamp()
FROM {schema}.activations a
WHERE s.activation = a.id AND a.ended_at IS NOT NULL
RETURNING s.projector;
