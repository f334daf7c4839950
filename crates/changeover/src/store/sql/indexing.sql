-- indexing: how far the indexes are that are being built in a schema, in hundredths.
-- $1 schema
SELECT coalesce(min(CASE WHEN p.blocks_total > 0 THEN 100 * p.blocks_done / p.blocks_total ELSE 0 END), 0)::integer AS percent
FROM pg_stat_progress_create_index p
JOIN pg_class t ON t.oid = p.relid
JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE n.nspname = $1;
