-- mark_activating: the pause begins. Nothing happens unless the activation is still open, no other one is in its pause, and
-- every version stands where it was when the activation was planned.
-- $1 id  $2 token  $3 pause limit in seconds
-- $4 $5 incoming projectors and versions  $6 $7 outgoing projectors and versions
WITH planned AS (
    SELECT i.projector, i.version, 'replaying' AS state, 'activating' AS next_state
    FROM unnest($4::text[], $5::text[]) AS i (projector, version)
    UNION ALL
    SELECT o.projector, o.version, 'active', 'active'
    FROM unnest($6::text[], $7::text[]) AS o (projector, version)
), standing AS (
    SELECT s.projector, s.version, p.next_state
    FROM {schema}.projector_states s JOIN planned p USING (projector, version, state)
    WHERE s.activation IS NULL
    FOR UPDATE OF s
), mark AS (
    UPDATE {schema}.activations a
    -- Read once: two readings of the clock may differ.
    SET (activating_at, deadline) = (SELECT at, at + $3 * interval '1 second' FROM clock_timestamp() AS at)
    WHERE a.id = $1 AND a.token = $2 AND a.ended_at IS NULL AND a.activating_at IS NULL
      AND (SELECT count(*) FROM standing) = (SELECT count(*) FROM planned)
      -- What it keeps must stand too: else it would make a configuration that nobody asked for.
      AND a.from_configuration::jsonb = (
          SELECT coalesce(jsonb_object_agg(s.projector, s.version), '{}') FROM {schema}.projector_states s
          WHERE s.state = 'active'
      )
    RETURNING a.id
)
UPDATE {schema}.projector_states s
SET state = standing.next_state, activation = mark.id, changed_at = clock_timestamp()
FROM mark, standing
WHERE s.projector = standing.projector AND s.version = standing.version
RETURNING s.projector;
