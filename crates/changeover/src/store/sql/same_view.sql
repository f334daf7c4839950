-- same_view: whether two views say the same.
-- $1 one  $2 the other's name, quoted
SELECT pg_get_viewdef($1) = pg_get_viewdef($2::regclass) AS same;
