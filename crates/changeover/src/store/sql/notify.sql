-- notify: a hint that something happened. In a transaction of its own, which need not wait for the disk.
-- $1 channel  $2 payload
SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2);
