-- compatibility: what a release must know to work with this schema, and how far the schema has come.
SELECT c.needs, (SELECT max(m.version) FROM {schema}.migrations m) AS version FROM {schema}.compatibility c;
