-- generation: as it is now.
SELECT g.last_value AS generation FROM {schema}.generation g;
