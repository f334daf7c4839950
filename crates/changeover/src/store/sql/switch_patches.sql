-- switch_patches: for a configuration that differs by patches alone. Old and new code may both write, so nobody pauses;
-- what is followed goes on being followed.
-- $1 id  $2 token  $3 $4 incoming projectors and versions  $5 $6 outgoing projectors and versions
WITH planned AS (
    SELECT i.projector, i.version, 'replaying' AS state, 'active' AS next_state
    FROM unnest($3::text[], $4::text[]) AS i (projector, version)
    UNION ALL
    SELECT o.projector, o.version, 'active', 'retired'
    FROM unnest($5::text[], $6::text[]) AS o (projector, version)
), standing AS (
    SELECT s.projector, s.version, p.next_state
    FROM {schema}.projector_states s JOIN planned p USING (projector, version, state)
    WHERE s.activation IS NULL
    FOR UPDATE OF s
), done AS (
    UPDATE {schema}.activations a
    SET ended_at = clock_timestamp(), outcome = 'activated'
    WHERE a.id = $1 AND a.token = $2 AND a.ended_at IS NULL
      AND (SELECT count(*) FROM standing) = (SELECT count(*) FROM planned)
      -- What it keeps must stand too: else it would make a configuration that nobody asked for.
      AND a.from_configuration::jsonb = (
          SELECT coalesce(jsonb_object_agg(s.projector, s.version), '{}') FROM {schema}.projector_states s
          WHERE s.state = 'active'
      )
    RETURNING a.requested_by
)
UPDATE {schema}.projector_states s
SET state = standing.next_state, follow = false, changed_by = done.requested_by, changed_at = clock_timestamp()
FROM done, standing
WHERE s.projector = standing.projector AND s.version = standing.version
RETURNING s.projector;
