-- ever_activated: whether a configuration was active before, though nothing is left of it in the states.
SELECT EXISTS (SELECT FROM {schema}.activations a WHERE a.outcome = 'activated')
    OR EXISTS (SELECT FROM {schema}.pruned_versions p WHERE p.activated) AS ever;
