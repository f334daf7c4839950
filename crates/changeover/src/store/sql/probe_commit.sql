-- probe_commit: writes a little and commits it, to see how long that takes. It changes nothing that anybody reads.
UPDATE {schema}.compatibility SET needs = needs RETURNING needs;
