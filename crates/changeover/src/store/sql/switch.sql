-- switch: the one moment. Conditional on token and deadline: a late activator changes nothing.
-- $1 id  $2 token  $3 horizon  $4 when the log was drained
WITH done AS (
    UPDATE {schema}.activations a
    SET ended_at = clock_timestamp(), outcome = 'activated', horizon = $3,
        drained_at = $4, caught_up_at = statement_timestamp()
    WHERE a.id = $1 AND a.token = $2 AND a.ended_at IS NULL
      AND a.activating_at IS NOT NULL AND a.deadline > clock_timestamp()
      -- Once more than at the mark, whose snapshot may have been older than a switch that it had to wait for.
      AND a.from_configuration::jsonb = (
          SELECT coalesce(jsonb_object_agg(s.projector, s.version), '{}') FROM {schema}.projector_states s
          WHERE s.state = 'active'
      )
    RETURNING a.id, a.requested_by, a.keep_following
), moved AS (
    UPDATE {schema}.projector_states s
    SET state = CASE s.state WHEN 'activating' THEN 'active' ELSE 'retired' END,
        -- Whose tables are taken over in place needs no following: they are current.
        follow = done.keep_following AND s.state = 'active' AND NOT EXISTS (
            SELECT FROM {schema}.projector_states n
            WHERE n.activation = done.id AND n.state = 'activating' AND n.projector = s.projector
              AND split_part(n.version, '.', 1) = split_part(s.version, '.', 1)
        ),
        activation = NULL, changed_by = done.requested_by, changed_at = clock_timestamp()
    FROM done
    WHERE s.activation = done.id AND s.state IN ('activating', 'active')
    RETURNING s.projector, s.version, s.state, s.delivery, split_part(s.version, '.', 1)::bigint AS major
), settled AS (
    -- What appends kept current has reached the horizon; what appends keep current from now on starts there.
    UPDATE {schema}.checkpoints c
    SET position = CASE WHEN c.inline OR after.inline THEN greatest(c.position, $3) ELSE c.position END,
        inline = after.inline,
        -- What stalled the code before may not stall the code that takes over.
        stalled_since = CASE WHEN NOT after.active THEN c.stalled_since END,
        error = CASE WHEN NOT after.active THEN c.error END,
        error_position = CASE WHEN NOT after.active THEN c.error_position END,
        error_type = CASE WHEN NOT after.active THEN c.error_type END,
        updated_at = clock_timestamp()
    FROM (
        SELECT m.projector, m.major, bool_or(m.state = 'active') AS active,
               bool_or(m.state = 'active' AND m.delivery = 'inline') AS inline
        FROM moved m GROUP BY m.projector, m.major
    ) after
    WHERE c.projector = after.projector AND c.major = after.major
    RETURNING c.projector
), unfollowed AS (
    -- What is followed is what the last switch retired, so that going back from it takes one activation.
    UPDATE {schema}.projector_states s
    SET follow = false
    FROM done, (
        -- Whoever has one of them locked, a prune or a mark that waits for us, is not waited for in the pause.
        SELECT o.projector, o.version FROM {schema}.projector_states o
        WHERE o.follow AND o.activation IS DISTINCT FROM $1
        FOR UPDATE SKIP LOCKED
    ) other
    WHERE s.projector = other.projector AND s.version = other.version
    RETURNING s.projector
), superseded AS (
    UPDATE {schema}.activations a
    SET ended_at = clock_timestamp(), outcome = 'aborted', error = 'activation ' || done.id || ' took place first'
    FROM done, (
        -- One that is being marked at this moment waits for us (there is one pause at a time), so we must not wait for it:
        -- that would be a deadlock, in the pause. Its own switch will find that its plan is out of date.
        SELECT o.id FROM {schema}.activations o
        WHERE o.ended_at IS NULL AND o.activating_at IS NULL AND o.id <> $1
        FOR UPDATE SKIP LOCKED
    ) other
    WHERE a.id = other.id
    RETURNING a.id
)
SELECT (SELECT count(*) FROM done) AS done, (SELECT count(*) FROM moved) AS moved,
       (SELECT count(*) FROM settled) AS settled;
