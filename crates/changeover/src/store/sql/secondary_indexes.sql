-- secondary_indexes: the indexes in a schema that belong to no constraint. What they are is told without name and schema.
-- $1 schema
SELECT t.relname AS "table", i.relname AS name, quote_ident(i.relname) AS quoted, x.indisunique AS is_unique, x.indisvalid AND x.indisready AS is_valid,
       substring(d.text FROM ' USING .*$') AS "using",
       CASE WHEN x.indisunique THEN 'UNIQUE' ELSE '' END
           || replace(substring(d.text FROM ' USING .*$'), quote_ident(n.nspname) || '.', '') AS definition
FROM pg_index x
JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_class t ON t.oid = x.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace,
LATERAL (SELECT pg_get_indexdef(i.oid) AS text) d
WHERE n.nspname = $1 AND t.relkind IN ('r', 'p', 'm')
  AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.oid)
ORDER BY t.relname, i.relname;
