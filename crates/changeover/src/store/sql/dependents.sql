-- dependents: what stands elsewhere and depends on something in a schema: views, foreign keys, functions, defaults, ..
-- $1 schema
WITH own AS (
    SELECT n.oid FROM pg_namespace n WHERE n.nspname = $1
), inside (classid, objid) AS (
    SELECT 'pg_namespace'::regclass::oid, own.oid FROM own
    UNION ALL
    SELECT 'pg_class'::regclass, c.oid FROM pg_class c, own WHERE c.relnamespace = own.oid
    UNION ALL
    SELECT 'pg_type'::regclass, t.oid FROM pg_type t, own WHERE t.typnamespace = own.oid
    UNION ALL
    SELECT 'pg_proc'::regclass, p.oid FROM pg_proc p, own WHERE p.pronamespace = own.oid
), dependent AS (
    SELECT d.classid, d.objid, d.objsubid,
           -- The relation that it is a part of: a view's rule, a column's default, a trigger, a policy.
           CASE d.classid
               WHEN 'pg_rewrite'::regclass THEN (SELECT r.ev_class FROM pg_rewrite r WHERE r.oid = d.objid)
               WHEN 'pg_attrdef'::regclass THEN (SELECT a.adrelid FROM pg_attrdef a WHERE a.oid = d.objid)
               WHEN 'pg_trigger'::regclass THEN (SELECT t.tgrelid FROM pg_trigger t WHERE t.oid = d.objid)
               WHEN 'pg_policy'::regclass THEN (SELECT p.polrelid FROM pg_policy p WHERE p.oid = d.objid)
               WHEN 'pg_class'::regclass THEN d.objid
           END AS relation
    FROM pg_depend d JOIN inside ON d.refclassid = inside.classid AND d.refobjid = inside.objid
    WHERE d.deptype <> 'i' AND d.classid <> 'pg_default_acl'::regclass
), placed AS (
    SELECT dependent.*,
           CASE dependent.classid
               WHEN 'pg_type'::regclass THEN (SELECT t.typnamespace FROM pg_type t WHERE t.oid = dependent.objid)
               WHEN 'pg_proc'::regclass THEN (SELECT p.pronamespace FROM pg_proc p WHERE p.oid = dependent.objid)
               WHEN 'pg_constraint'::regclass THEN
                   (SELECT c.connamespace FROM pg_constraint c WHERE c.oid = dependent.objid)
               WHEN 'pg_statistic_ext'::regclass THEN
                   (SELECT s.stxnamespace FROM pg_statistic_ext s WHERE s.oid = dependent.objid)
               ELSE (SELECT c.relnamespace FROM pg_class c WHERE c.oid = dependent.relation)
           END AS namespace
    FROM dependent
)
SELECT DISTINCT object.type || ' ' || object.identity AS object
FROM placed CROSS JOIN own CROSS JOIN LATERAL pg_identify_object(
    CASE WHEN placed.classid = 'pg_rewrite'::regclass THEN 'pg_class'::regclass ELSE placed.classid END,
    CASE WHEN placed.classid = 'pg_rewrite'::regclass THEN placed.relation ELSE placed.objid END,
    placed.objsubid
) object
WHERE placed.namespace IS DISTINCT FROM own.oid
ORDER BY object;
