-- read: events in position order, by limits of rows and of bytes; the first one always comes.
-- $1 after  $2 up to  $3 types, null for all  $4 rows  $5 bytes
SELECT e.position, e.stream, e.revision, e.type, e.data, e.metadata, e.recorded_at, e.found
FROM (
    SELECT r.*, count(*) OVER () AS found,
           sum(r.bytes) OVER (ORDER BY r.position) - r.bytes AS bytes_before
    FROM (
        SELECT l.*, pg_column_size(l.data)::bigint AS bytes
        FROM {schema}.events l
        WHERE l.position > $1 AND l.position <= $2 AND ($3::text[] IS NULL OR l.type = ANY ($3))
        ORDER BY l.position
        LIMIT $4
    ) r
) e
WHERE e.bytes_before < $5
ORDER BY e.position;
