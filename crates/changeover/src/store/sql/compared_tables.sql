-- compared_tables: the columns of the tables in a schema, and how two values of each are compared: as what they are where their
-- type's own equality tells every difference that matters, as text elsewhere.
-- $1 schema
SELECT c.relname AS table_name, a.attname AS column_name, format_type(a.atttypid, a.atttypmod) AS sql_type,
       CASE WHEN t.oid = 'json'::regtype THEN 'json'
            WHEN coalesce(e.oid, t.oid) = ANY (ARRAY[
                     'boolean', 'smallint', 'integer', 'bigint', 'real', 'double precision', 'numeric', 'text',
                     'character varying', 'bytea', 'uuid', 'date', 'time', 'timestamp', 'timestamptz', 'jsonb'
                 ]::regtype[]) THEN 'value'
            ELSE 'text' END AS compared_as,
       array_position(k.conkey, a.attnum) AS key_place
FROM pg_namespace n
JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p') AND NOT c.relispartition
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
LEFT JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'p'
WHERE n.nspname = $1
ORDER BY c.relname, a.attnum;
