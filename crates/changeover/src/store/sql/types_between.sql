-- types_between: which types of event lie in a short stretch of the log.
-- $1 after  $2 up to
SELECT DISTINCT e.type FROM {schema}.events e WHERE e.position > $1 AND e.position <= $2;
