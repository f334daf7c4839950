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
       array_position(k.conkey, a.attnum) AS key_place, u.keys AS unique_keys
FROM pg_namespace n
JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p') AND NOT c.relispartition
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
LEFT JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'p'
LEFT JOIN LATERAL (
    -- What does as a primary key, whatever it is called.
    SELECT jsonb_agg(DISTINCT columns.names) AS keys
    FROM pg_index i
    JOIN LATERAL (
        SELECT jsonb_agg(o.attname) AS names, bool_and(o.attnotnull) AS not_null
        FROM pg_attribute o
        WHERE o.attrelid = i.indrelid AND o.attnum = ANY ((i.indkey::smallint[])[0:i.indnkeyatts - 1])
    ) columns ON columns.not_null
    WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
      AND i.indpred IS NULL AND i.indexprs IS NULL
) u ON true
WHERE n.nspname = $1
ORDER BY c.relname, a.attnum;
