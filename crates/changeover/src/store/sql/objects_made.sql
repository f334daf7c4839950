-- objects_made: what the projector's DDL made in the schema of a major version.
-- $1 projector  $2 major
SELECT c.objects FROM {schema}.checkpoints c WHERE c.projector = $1 AND c.major = $2 ORDER BY c.shard LIMIT 1;
