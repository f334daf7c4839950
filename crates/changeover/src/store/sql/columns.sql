-- columns: the columns of the tables in a schema, with whatever decides which values they take.
-- $1 schema
SELECT c.relname || '.' || a.attname AS name,
       concat_ws(' ', format_type(a.atttypid, a.atttypmod),
                 CASE WHEN a.attnotnull THEN 'not null' END,
                 CASE WHEN a.attgenerated <> '' THEN 'generated'
                      WHEN a.atthasdef OR a.attidentity <> '' THEN 'with a default' END,
                 'and number ' || array_position(k.indkey::smallint[], a.attnum) + 1 || ' of the primary key') AS definition
FROM pg_namespace n
JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p') AND NOT c.relispartition
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_index k ON k.indrelid = c.oid AND k.indisprimary
WHERE n.nspname = $1
ORDER BY c.relname, a.attnum;
