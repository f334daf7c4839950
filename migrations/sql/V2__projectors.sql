-- Projectors: which versions count, how far their tables have come, and how that came about.

CREATE TABLE {schema}.activations (
    id                 bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    token              uuid        NOT NULL,
    requested_by       text        NOT NULL,
    from_configuration json        NOT NULL,
    to_configuration   json        NOT NULL,
    -- Whether it went back to what was active before.
    rollback           boolean     NOT NULL DEFAULT false,
    -- Whether instances of the old release are to keep the tables current that it retires.
    keep_following     boolean     NOT NULL DEFAULT false,
    started_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- While it is prepared, whoever does so says every now and then that he is there.
    last_seen          timestamptz NOT NULL DEFAULT clock_timestamp(),
    activating_at      timestamptz,
    deadline           timestamptz,
    drained_at         timestamptz,
    caught_up_at       timestamptz,
    horizon            bigint,
    ended_at           timestamptz,
    outcome            text,
    error              text,
    CONSTRAINT activations_pkey PRIMARY KEY (id),
    CONSTRAINT activations_outcome CHECK (outcome IN ('activated', 'aborted', 'expired', 'failed')),
    CONSTRAINT activations_ended CHECK ((ended_at IS NULL) = (outcome IS NULL))
);

-- One activation at a time may pause the writers.
CREATE UNIQUE INDEX activations_one_at_a_time ON {schema}.activations ((true))
    WHERE activating_at IS NOT NULL AND ended_at IS NULL;

CREATE TABLE {schema}.projector_states (
    projector   text        NOT NULL,
    version     text        NOT NULL,
    state       text        NOT NULL,
    delivery    text        NOT NULL,
    fingerprint text        NOT NULL,
    -- The activation that is switching this row right now: incoming rows are activating, outgoing ones still active.
    activation  bigint,
    -- Whether instances that register this version keep its tables current though it has retired.
    follow      boolean     NOT NULL DEFAULT false,
    changed_by  text        NOT NULL,
    changed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT projector_states_pkey PRIMARY KEY (projector, version),
    CONSTRAINT projector_states_activation FOREIGN KEY (activation) REFERENCES {schema}.activations (id),
    CONSTRAINT projector_states_state CHECK (state IN ('replaying', 'activating', 'active', 'retired')),
    CONSTRAINT projector_states_delivery CHECK (delivery IN ('inline', 'background')),
    -- Deferred, because one statement moves the old version out and the new one in.
    CONSTRAINT projector_states_one_active EXCLUDE USING btree (projector WITH =) WHERE (state = 'active')
        DEFERRABLE INITIALLY DEFERRED
);

-- A checkpoint belongs to the tables, which the minor and patch versions of one major version share.
CREATE TABLE {schema}.checkpoints (
    projector          text        NOT NULL,
    major              bigint      NOT NULL,
    shard              integer     NOT NULL DEFAULT 0,
    position           bigint      NOT NULL DEFAULT 0,
    -- True while appends keep these rows current themselves; `position` then is the horizon of the last activation.
    inline             boolean     NOT NULL DEFAULT false,
    tables_fingerprint text        NOT NULL,
    -- While several shards replay these tables: the position at which they meet. Their own checkpoints are those of shards 1
    -- and up; shard 0 is the tables as a whole, which nobody feeds meanwhile.
    parallel_to        bigint,
    -- And what a sample of the events is split by, where the projector itself has declared that: whoever splits them otherwise
    -- must not go on with these shards.
    split              bigint[],
    -- False until the secondary indexes are there: they are built once the bulk of the log has been replayed.
    indexed            boolean     NOT NULL DEFAULT true,
    -- What the projector's DDL made in the schema of these tables. Whatever else is there is not ours to drop.
    objects            text[]      NOT NULL DEFAULT '{}',
    -- Where the rows came from elsewhere: the position up to which they held everything when the tables were adopted.
    adopted            bigint,
    -- The columns of its tables, as they were made; and whether the DDL filled them, too.
    columns            text[]      NOT NULL DEFAULT '{}',
    seeded             boolean     NOT NULL DEFAULT false,
    -- How often the replay of these tables was begun: whoever is still at an earlier attempt is refused.
    attempt            integer     NOT NULL DEFAULT 1,
    stalled_since      timestamptz,
    error              text,
    error_position     bigint,
    error_type         text,
    updated_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT checkpoints_pkey PRIMARY KEY (projector, major, shard)
) WITH (fillfactor = 50);

-- Events that somebody decided a projector shall do without.
CREATE TABLE {schema}.skipped_events (
    projector  text        NOT NULL,
    major      bigint      NOT NULL,
    position   bigint      NOT NULL,
    error      text        NOT NULL,
    skipped_by text        NOT NULL,
    skipped_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT skipped_events_pkey PRIMARY KEY (projector, major, position)
);

-- Versions whose tables somebody dropped: that had retired, or that were never activated. Registered again, they are replayed from
-- the beginning.
CREATE TABLE {schema}.pruned_versions (
    projector text        NOT NULL,
    version   text        NOT NULL,
    pruned_by text        NOT NULL,
    -- Whether it was ever active.
    activated boolean     NOT NULL DEFAULT true,
    -- The last attempt at replaying the tables: whoever is still at it is refused by tables that were made since.
    attempt   integer     NOT NULL DEFAULT 1,
    pruned_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT pruned_versions_pkey PRIMARY KEY (projector, version)
);

-- The stable views <projector>.<table>, which readers outside the application use: a row says that the view of that name is ours.
CREATE TABLE {schema}.views (
    projector text NOT NULL,
    name      text NOT NULL,
    -- Owner, grants and comments that went with a view when it was dropped, for when it is made again.
    kept      json,
    CONSTRAINT views_pkey PRIMARY KEY (projector, name)
);

CREATE TABLE {schema}.instances (
    id                  uuid        NOT NULL,
    application         text        NOT NULL,
    application_version text        NOT NULL,
    configuration       json        NOT NULL,
    address             text,
    readiness           text        NOT NULL,
    started_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen           timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT instances_pkey PRIMARY KEY (id)
);

-- Who replays, verifies or optimizes which version right now, and how far that is: for whoever watches from outside. Nothing is
-- decided by it but that the work is to end. Whoever is killed leaves its rows behind, and is known to be gone by its silence.
CREATE TABLE {schema}.replays (
    id                  uuid             NOT NULL,
    projector           text             NOT NULL,
    version             text             NOT NULL,
    purpose             text             NOT NULL,
    phase               text             NOT NULL,
    position            bigint           NOT NULL DEFAULT 0,
    horizon             bigint           NOT NULL DEFAULT 0,
    events              bigint           NOT NULL DEFAULT 0,
    events_per_sec      double precision,
    left_secs           double precision,
    indexes_built       integer,
    indexes             integer,
    requested_by        text,
    instance            uuid             NOT NULL,
    application         text             NOT NULL,
    application_version text             NOT NULL,
    host                text,
    pid                 bigint           NOT NULL,
    started_at          timestamptz      NOT NULL DEFAULT clock_timestamp(),
    last_seen           timestamptz      NOT NULL DEFAULT clock_timestamp(),
    -- Who wants it to end.
    aborted_by          text,
    CONSTRAINT replays_pkey PRIMARY KEY (id, projector)
) WITH (fillfactor = 50);
