-- adopted: how tables were adopted. No row: they were not.
-- $1 projector  $2 major
SELECT c.adopted, c.inline FROM {schema}.checkpoints c
WHERE c.projector = $1 AND c.major = $2 AND c.adopted IS NOT NULL;
