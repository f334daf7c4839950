-- keep_view: notes that a view is ours, and what would go with it when it is dropped.
-- $1 projector  $2 name  $3 owner, grants and comments; null to leave what was noted before
INSERT INTO {schema}.views AS v (projector, name, kept)
VALUES ($1, $2, $3)
ON CONFLICT ON CONSTRAINT views_pkey DO UPDATE SET kept = coalesce(excluded.kept, v.kept)
RETURNING v.name;
