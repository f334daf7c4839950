-- read_stream: the events of one stream.
-- $1 stream  $2 after revision  $3 rows
SELECT e.position, e.stream, e.revision, e.type, e.data, e.metadata, e.recorded_at
FROM {schema}.events e
WHERE e.stream = $1 AND e.revision > $2
ORDER BY e.revision
LIMIT $3;
