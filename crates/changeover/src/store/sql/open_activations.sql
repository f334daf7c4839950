-- open_activations: those that have not ended, in the order in which they began.
SELECT a.id FROM {schema}.activations a WHERE a.ended_at IS NULL ORDER BY a.id;
