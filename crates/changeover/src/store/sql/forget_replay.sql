-- forget_replay: work that has ended.
-- $1 id
DELETE FROM {schema}.replays r WHERE r.id = $1 RETURNING r.projector;
