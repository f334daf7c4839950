-- grantees: which of some roles are there; and who gets rights on a new relation by itself.
-- $1 roles
SELECT ARRAY(SELECT r.rolname::text FROM pg_roles r WHERE r.rolname = ANY ($1)) AS present,
       ARRAY(
           SELECT DISTINCT pg_get_userbyid(x.grantee)::text
           FROM pg_default_acl d, aclexplode(d.defaclacl) x
           WHERE d.defaclobjtype = 'r' AND x.grantee <> 0
       ) AS by_default;
