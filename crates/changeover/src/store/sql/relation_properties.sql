-- relation_properties: what people gave a relation: owner, options, grants, comments.
-- $1 the relation
SELECT json_build_object(
    'owner', pg_get_userbyid(c.relowner),
    'options', to_json(coalesce(c.reloptions, '{}')),
    'granted', c.relacl IS NOT NULL,
    'grants', (
        SELECT coalesce(json_agg(json_build_object(
            'grantee', g.grantee, 'privilege', g.privilege_type, 'grantable', g.grantable, 'column', g.attname
        )), '[]')
        FROM (
            -- None is PUBLIC. One that came by another way than from the owner counts once, and comes from the owner afterwards.
            SELECT CASE WHEN e.grantee <> 0 THEN pg_get_userbyid(e.grantee) END AS grantee, e.privilege_type,
                   bool_or(e.is_grantable) AS grantable, e.attname
            FROM (
                SELECT x.grantee, x.privilege_type, x.is_grantable, NULL::name AS attname FROM aclexplode(c.relacl) x
                UNION ALL
                SELECT x.grantee, x.privilege_type, x.is_grantable, a.attname
                FROM pg_attribute a, aclexplode(a.attacl) x
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            ) e
            GROUP BY e.grantee, e.privilege_type, e.attname
            ORDER BY e.attname, e.grantee, e.privilege_type
        ) g
    ),
    'comments', (
        SELECT coalesce(json_agg(json_build_object('column', a.attname, 'text', d.description) ORDER BY d.objsubid), '[]')
        FROM pg_description d
        LEFT JOIN pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid AND d.objsubid > 0
        WHERE d.classoid = 'pg_class'::regclass AND d.objoid = c.oid
    )
) AS properties
FROM pg_class c
WHERE c.oid = $1;
