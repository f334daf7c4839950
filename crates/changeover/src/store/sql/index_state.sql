-- index_state: whether an index is there, and whole. No row: it is not.
-- $1 the index, with its schema
SELECT x.indisvalid AND x.indisready AS is_valid FROM pg_index x WHERE x.indexrelid = to_regclass($1);
