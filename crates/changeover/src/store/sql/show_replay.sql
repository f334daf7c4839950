-- show_replay: work on some projectors has begun. The rows of whoever has been silent for long go.
-- $1 id  $2 what does not change of each projector's row  $3 seconds of silence  $4 the same where it was told to end
WITH gone AS (
    DELETE FROM {schema}.replays r
    WHERE r.id <> $1
      AND r.last_seen < clock_timestamp() - CASE WHEN r.aborted_by IS NULL THEN $3 ELSE $4 END * interval '1 second'
)
INSERT INTO {schema}.replays (id, projector, version, purpose, requested_by, instance, application, application_version, host,
                              pid, phase)
SELECT $1, s.projector, s.version, s.purpose, s.requested_by, s.instance, s.application, s.application_version, s.host, s.pid,
       s.phase
FROM json_to_recordset($2) AS s (projector text, version text, purpose text, requested_by text, instance uuid, application text,
                                 application_version text, host text, pid bigint, phase text)
ON CONFLICT ON CONSTRAINT replays_pkey DO NOTHING
RETURNING id;
