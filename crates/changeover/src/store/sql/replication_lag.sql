-- replication_lag: of the standby that is furthest behind in replaying; null where there is none, or none that we may see.
SELECT extract(epoch FROM max(r.replay_lag))::double precision AS lag_secs FROM pg_stat_replication r;
