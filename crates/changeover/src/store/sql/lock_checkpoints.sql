-- lock_checkpoints: nobody publishes to these tables any more, nor reads them for a comparison, which holds the row as well.
-- $1 projector  $2 major
SELECT c.shard FROM {schema}.checkpoints c WHERE c.projector = $1 AND c.major = $2 FOR UPDATE;
