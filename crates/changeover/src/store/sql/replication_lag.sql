-- replication_lag: of the standby that is furthest behind in replaying, null where none is known to be. Of a standby that this role
-- may not see, nothing is known but that it is there.
SELECT count(*) AS standbys, count(r.state) AS seen, extract(epoch FROM max(r.replay_lag))::double precision AS lag_secs
FROM pg_stat_replication r;
