-- reached: whether a projector's rows hold everything up to a position: its checkpoint does, or nothing that it
-- handles lies between the two.
-- $1 projector  $2 major  $3 position  $4 types
SELECT c.inline OR c.position >= $3 OR NOT EXISTS (
           SELECT FROM {schema}.events e
           WHERE e.position > c.position AND e.position <= $3 AND e.type = ANY ($4)
       ) AS reached, c.position, c.error
FROM {schema}.checkpoints c
WHERE c.projector = $1 AND c.major = $2 AND c.shard = 0;
