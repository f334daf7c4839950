-- table_shapes: tables as far as a definition says: columns, types, what may be null, and keys.
-- $1 schema  $2 names, null for all its tables
SELECT c.relname::text AS name, c.oid AS relation, c.relkind IN ('r', 'p') AS is_table, c.relrowsecurity AS row_security,
       columns.names, columns.types, columns.nullable, columns.generated, keys.keys
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN LATERAL (
    SELECT coalesce(array_agg(a.attname::text ORDER BY a.attnum), '{}') AS names,
           coalesce(array_agg(
               -- A type that came with the tables has the name of their schema in its own.
               CASE WHEN t.typnamespace = c.relnamespace THEN 'its own ' || t.typname
               ELSE format_type(a.atttypid, a.atttypmod) END
               || CASE WHEN a.attcollation <> t.typcollation THEN ' COLLATE ' || l.collname ELSE '' END
               ORDER BY a.attnum
           ), '{}') AS types,
           coalesce(array_agg(NOT a.attnotnull ORDER BY a.attnum), '{}') AS nullable,
           coalesce(array_agg(a.attgenerated <> '' OR a.attidentity = 'a' ORDER BY a.attnum), '{}') AS generated
    FROM pg_attribute a
    JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_collation l ON l.oid = a.attcollation
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
) columns ON true
LEFT JOIN LATERAL (
    -- Whether a key is called primary makes no difference.
    SELECT coalesce(array_agg(DISTINCT concat_ws(' ',
        (
            SELECT '(' || string_agg(a.attname, ', ' ORDER BY a.attname) || ')' FROM pg_attribute a
            WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::smallint[])[0:i.indnkeyatts - 1])
        ),
        'of ' || pg_get_expr(i.indexprs, i.indrelid), 'where ' || pg_get_expr(i.indpred, i.indrelid),
        CASE WHEN NOT i.indimmediate THEN 'deferrable' END, CASE WHEN NOT i.indisvalid THEN 'invalid' END
    )), '{}') AS keys
    FROM pg_index i
    WHERE i.indrelid = c.oid AND i.indisunique
) keys ON true
WHERE n.nspname = $1 AND NOT c.relispartition
  AND CASE WHEN $2::text[] IS NULL THEN c.relkind IN ('r', 'p') ELSE c.relname = ANY ($2) END
ORDER BY c.relname;
