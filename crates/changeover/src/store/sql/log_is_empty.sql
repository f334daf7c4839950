-- log_is_empty: whether no event was ever appended.
SELECT p.last_value = 0 AS empty FROM {schema}.event_position p;
