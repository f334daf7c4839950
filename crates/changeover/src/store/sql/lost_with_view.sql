-- lost_with_view: what stands in the way of dropping a view: what depends on it, and what hangs on it and would go along
-- unnoticed.
-- $1 the view
SELECT DISTINCT lost.what
FROM (
    SELECT coalesce(pg_describe_object('pg_class'::regclass, r.ev_class, 0), pg_describe_object(d.classid, d.objid, d.objsubid)) AS what
    FROM pg_depend d
    LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    WHERE d.deptype = 'n' AND r.ev_class IS DISTINCT FROM $1
      AND (d.refclassid = 'pg_class'::regclass AND d.refobjid = $1
           OR d.refclassid = 'pg_type'::regclass AND d.refobjid IN (
               SELECT unnest(ARRAY[t.oid, t.typarray]) FROM pg_type t WHERE t.typrelid = $1
           ))
    UNION ALL
    SELECT pg_describe_object('pg_trigger'::regclass, t.oid, 0) FROM pg_trigger t WHERE t.tgrelid = $1
    UNION ALL
    SELECT pg_describe_object('pg_rewrite'::regclass, r.oid, 0) FROM pg_rewrite r
    WHERE r.ev_class = $1 AND r.rulename <> '_RETURN'
    UNION ALL
    SELECT pg_describe_object('pg_attrdef'::regclass, a.oid, 0) FROM pg_attrdef a WHERE a.adrelid = $1
    UNION ALL
    SELECT 'security label ' || l.provider FROM pg_seclabel l
    WHERE l.classoid = 'pg_class'::regclass AND l.objoid = $1
) lost
ORDER BY lost.what;
