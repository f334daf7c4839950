-- objects: what stands in a schema by itself, and how it is dropped. What goes along with a table does not: indexes,
-- sequences of its columns, partitions.
-- $1 schema
SELECT found.kind, (pg_identify_object(found.classid, found.objid, 0)).identity AS identity
FROM pg_namespace n, LATERAL (
    SELECT 'pg_class'::regclass AS classid, c.oid AS objid,
           CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'f' THEN 'FOREIGN TABLE'
                          WHEN 'S' THEN 'SEQUENCE' WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END AS kind
    FROM pg_class c
    WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c') AND NOT c.relispartition
      AND NOT EXISTS (
          SELECT FROM pg_depend d
          WHERE c.relkind = 'S' AND d.classid = 'pg_class'::regclass AND d.objid = c.oid
            AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
      )
    UNION ALL
    SELECT 'pg_type'::regclass, t.oid, 'TYPE'
    FROM pg_type t
    WHERE t.typnamespace = n.oid AND t.typtype IN ('e', 'd', 'r')
    UNION ALL
    SELECT 'pg_proc'::regclass, p.oid, 'ROUTINE'
    FROM pg_proc p
    WHERE p.pronamespace = n.oid
      -- Not the constructors of a range type.
      AND NOT EXISTS (
          SELECT FROM pg_depend d
          WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
            AND d.refclassid = 'pg_type'::regclass AND d.deptype = 'i'
      )
) found
WHERE n.nspname = $1
ORDER BY found.kind, identity;
