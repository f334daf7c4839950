-- stable_views: the views of a projector as they stand, beside the tables that they should show: a row for each table of the
-- active version, and for each other view that was ever made.
-- $1 projector, null for all
WITH active AS (
    SELECT s.projector, split_part(s.version, '.', 1)::bigint AS major
    FROM {schema}.projector_states s
    WHERE s.state = 'active' AND ($1::text IS NULL OR s.projector = $1)
), wanted AS (
    SELECT a.projector, c.relname::text AS name, c.oid
    FROM active a
    JOIN pg_namespace n ON n.nspname = a.projector || '_v' || a.major
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p') AND NOT c.relispartition
), made AS (
    SELECT v.projector, v.name, v.kept FROM {schema}.views v WHERE $1 IS NULL OR v.projector = $1
), place AS (
    SELECT projector, name, w.oid AS wanted, m.name IS NOT NULL AS ours, m.kept
    FROM wanted w FULL JOIN made m USING (projector, name)
)
SELECT p.projector, p.name, p.wanted IS NOT NULL AS wanted, p.ours, p.kept, a.major AS active,
       s.oid IS NOT NULL AS schema_present, v.oid AS relation, shown.major AS shows,
       CASE WHEN NOT has_table_privilege(coalesce(v.relowner, me.oid), p.wanted, 'SELECT')
       THEN pg_get_userbyid(coalesce(v.relowner, me.oid))::text END AS unreadable_by,
       of_table.names AS table_columns, of_table.kinds AS table_kinds,
       of_view.names AS view_columns, of_view.kinds AS view_kinds
FROM place p
JOIN pg_roles me ON me.rolname = current_user
LEFT JOIN active a ON a.projector = p.projector
LEFT JOIN pg_namespace s ON s.nspname = p.projector
LEFT JOIN pg_class v ON v.relnamespace = s.oid AND v.relname = p.name
LEFT JOIN LATERAL (
    -- A view of ours reads one relation: the table of its name, in a schema of its projector.
    SELECT CASE WHEN count(DISTINCT t.oid) = 1 AND bool_and(t.relname = p.name)
           THEN least(max(substring(n.nspname FROM '^' || p.projector || '_v([0-9]+)$'))::numeric, 9223372036854775807)::bigint
           END AS major
    FROM pg_rewrite r
    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
                    AND d.refobjid <> r.ev_class
    JOIN pg_class t ON t.oid = d.refobjid
    JOIN pg_namespace n ON n.oid = t.relnamespace
    WHERE r.ev_class = v.oid AND v.relkind = 'v' AND r.rulename = '_RETURN'
) shown ON true
LEFT JOIN LATERAL (
    SELECT coalesce(array_agg(c.attname::text ORDER BY c.attnum), '{}') AS names,
           coalesce(array_agg(concat_ws('/', c.atttypid, c.atttypmod, c.attcollation) ORDER BY c.attnum), '{}') AS kinds
    FROM pg_attribute c WHERE c.attrelid = p.wanted AND c.attnum > 0 AND NOT c.attisdropped
) of_table ON true
LEFT JOIN LATERAL (
    SELECT coalesce(array_agg(c.attname::text ORDER BY c.attnum), '{}') AS names,
           coalesce(array_agg(concat_ws('/', c.atttypid, c.atttypmod, c.attcollation) ORDER BY c.attnum), '{}') AS kinds
    FROM pg_attribute c WHERE c.attrelid = v.oid AND c.attnum > 0 AND NOT c.attisdropped
) of_view ON true
ORDER BY p.projector, p.name;
