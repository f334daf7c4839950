-- sample: some of the events between two positions: of each type the first two after each of eight places.
-- $1 after  $2 up to  $3 types
SELECT e.position, e.stream, e.revision, e.type, e.data, e.metadata, e.recorded_at
FROM (SELECT ($2::bigint - $1 + 7) / 8 AS width) w
CROSS JOIN generate_series(0, 7) AS place
CROSS JOIN LATERAL (
    SELECT l.*, row_number() OVER (PARTITION BY l.type ORDER BY l.position) AS nth
    FROM {schema}.events l
    WHERE l.position > $1 + w.width * place AND l.position <= least($2, $1 + w.width * place + least(w.width, 1000))
      AND l.type = ANY ($3)
) e
WHERE e.nth <= 2
ORDER BY e.position;
