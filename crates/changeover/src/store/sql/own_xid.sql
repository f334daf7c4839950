-- own_xid: the transaction's own number, as rows carry it.
SELECT pg_current_xact_id()::xid::text AS xid;
