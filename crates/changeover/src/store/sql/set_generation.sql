-- set_generation: to a value never used before, also after a failover to a standby that lagged: the clock in
-- milliseconds above 20 random bits.
SELECT setval('{schema}.generation', greatest(
    g.last_value + 1,
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint * 1048576 + (random() * 1048575)::bigint
)) AS generation
FROM {schema}.generation g;
