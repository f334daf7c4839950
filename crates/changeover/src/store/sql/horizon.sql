-- horizon: the newest position drawn, then the oldest lease. The look at the leases depends on the mark, so it comes second.
WITH mark AS MATERIALIZED (
    SELECT p.last_value AS newest FROM {schema}.event_position p
)
SELECT mark.newest, clock_timestamp() AS looked_at, least(mark.newest, (
    -- A lease shows the low 32 bits of a position at or below the mark.
    SELECT min(CASE WHEN near.position > mark.newest THEN near.position - 4294967296 ELSE near.position END)
    FROM pg_locks l, LATERAL (
        SELECT ((mark.newest >> 32) << 32) | l.objid::bigint AS position
    ) near
    WHERE l.locktype = 'advisory' AND l.objsubid = 2
      AND l.classid = '{schema}.events'::regclass
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
)) AS horizon
FROM mark;
