//! Every statement of ours: a file each, rendered once with the name of the schema.

use postgres_types::Type;

use crate::words::names::SchemaName;

/// A statement with the types of its parameters, so that it can be sent named or unnamed alike.
#[derive(Debug)]
pub(crate) struct Sql {
    pub(crate) text: String,
    pub(crate) types: Vec<Type>,
}

macro_rules! statements {
    ($($name:ident($($ty:ident),*);)*) => {
        /// The statements, by the name of the function that runs them.
        #[derive(Debug)]
        pub(crate) struct Statements {
            $(pub(crate) $name: Sql,)*
        }

        impl Statements {
            pub(crate) fn render(schema: &SchemaName) -> Self {
                Self {
                    $($name: Sql {
                        text: include_str!(concat!("sql/", stringify!($name), ".sql"))
                            .replace("{schema}", schema.as_str()),
                        types: vec![$(Type::$ty),*],
                    },)*
                }
            }

            /// All of them with their names, for the tests that keep them honest.
            #[cfg(test)]
            pub(crate) fn all(&self) -> Vec<(&'static str, &Sql)> {
                vec![$((stringify!($name), &self.$name),)*]
            }
        }
    };
}

statements! {
    append(INT8, TEXT, INT8, TEXT_ARRAY, JSON_ARRAY, JSON_ARRAY);
    append_at(INT8, TEXT, INT8, TEXT_ARRAY, JSON_ARRAY, JSON_ARRAY);
    append_new(INT8, TEXT, TEXT_ARRAY, JSON_ARRAY, JSON_ARRAY);
    append_first(INT8, TEXT, TEXT, JSON, JSON);
    lock_stream(TEXT, INT8);
    lock_keys(INT4_ARRAY, INT8, TEXT);
    holds_lease();
    horizon();
    in_flight();
    read(INT8, INT8, TEXT_ARRAY, INT8, INT8);
    read_stream(TEXT, INT8, INT8);
    types_between(INT8, INT8);
    log_is_empty();
    generation();
    set_generation();
    states();
    enter(INT8, TEXT, INT8, INT4, TEXT, TEXT, INT4);
    begun(TEXT, INT8);
    begin_restart();
    restart(TEXT, INT8, TEXT, BOOL, FLOAT8);
    begin_shards(TEXT, INT8, INT8, INT4, INT4, INT8_ARRAY);
    sample(INT8, INT8, TEXT_ARRAY);
    shards(TEXT, INT8);
    enter_shard(TEXT, INT8, INT4, INT4, TEXT);
    end_shards(TEXT, INT8);
    enter_scratch();
    scratch_schemas(TEXT);
    objects(TEXT);
    compared_tables(TEXT);
    verified_at(TEXT, INT8);
    verified_between(TEXT, INT8, INT8);
    join_replay(TEXT);
    replayers(TEXT);
    claim_shard(TEXT);
    probe_commit();
    replication_lag();
    indexed(TEXT, INT8, INT4);
    tables_of(TEXT);
    secondary_indexes(TEXT);
    lock_index(TEXT);
    index_state(TEXT);
    indexing(TEXT);
    advance_checkpoint(TEXT, INT8, INT4, INT8, INT8);
    checkpoints();
    reached(TEXT, INT8, INT8, TEXT_ARRAY);
    stall(TEXT, INT8, INT4, INT8, TEXT, INT8, TEXT);
    stalls(TEXT);
    retry(TEXT);
    skip(TEXT, INT8, TEXT);
    lock_registration();
    register_version(TEXT, TEXT, TEXT, TEXT, TEXT, TEXT);
    create_checkpoint(TEXT, INT8, BOOL, TEXT, BOOL, TEXT_ARRAY, TEXT_ARRAY, BOOL);
    columns(TEXT);
    ever_activated();
    schema_exists(TEXT);
    table_shapes(TEXT, TEXT_ARRAY);
    adopt_checkpoint(TEXT, INT8, INT8, BOOL, TEXT, TEXT_ARRAY);
    adopted(TEXT, INT8);
    compatibility();
    start_activation(UUID, TEXT, JSON, JSON, BOOL, BOOL);
    newest_activated();
    pruned_versions();
    replaced_configurations();
    retired_tables(FLOAT8);
    objects_made(TEXT, INT8);
    dependents(TEXT);
    begin_pruning();
    lock_checkpoints(TEXT, INT8);
    prune_versions(TEXT, INT8, TEXT, FLOAT8);
    forget_tables(TEXT, INT8);
    abandoned(TEXT, INT8, FLOAT8, FLOAT8, TEXT);
    discard_versions(TEXT, INT8, TEXT, FLOAT8, FLOAT8, TEXT);
    in_the_way(TEXT, INT4);
    stable_views(TEXT);
    lock_views(TEXT);
    keep_view(TEXT, TEXT, JSON);
    same_view(OID, TEXT);
    relation_properties(OID);
    grantees(TEXT_ARRAY);
    lost_with_view(OID);
    lock_holders(OID_ARRAY);
    mark_activating(INT8, UUID, FLOAT8, TEXT_ARRAY, TEXT_ARRAY, TEXT_ARRAY, TEXT_ARRAY);
    pause_left(INT8, UUID);
    switch(INT8, UUID, INT8, TIMESTAMPTZ);
    switch_patches(INT8, UUID, TEXT_ARRAY, TEXT_ARRAY, TEXT_ARRAY, TEXT_ARRAY);
    see_activation(INT8, UUID);
    overdue(FLOAT8);
    give_back(INT8, TEXT, TEXT, BOOL, FLOAT8);
    release();
    open_activation(FLOAT8);
    open_activations();
    activations(INT8);
    see_instance(UUID, TEXT, TEXT, JSON, TEXT, TEXT);
    forget_instances(UUID, FLOAT8);
    instances();
    show_replay(UUID, JSON, FLOAT8, FLOAT8);
    see_replay(UUID, JSON);
    forget_replay(UUID);
    abort_replays(TEXT_ARRAY, TEXT);
    replays();
    notify(TEXT, TEXT);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_is_used() {
        let files: BTreeSet<String> =
            std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/sql"))
                .unwrap()
                .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
                .collect();
        let used: BTreeSet<String> = Statements::render(&SchemaName::default())
            .all()
            .into_iter()
            .map(|(name, _)| name.to_owned())
            .collect();
        assert_eq!(files, used);
    }

    #[test]
    fn every_statement_says_what_it_is_and_names_its_schema() {
        for (name, sql) in Statements::render(&"elsewhere".parse().unwrap()).all() {
            assert!(sql.text.starts_with(&format!("-- {name}: ")), "{name} does not begin with its name");
            assert!(!sql.text.contains("changeover."), "{name} has the schema's name in it");
            let braces = sql.text.replace("'{}'", "an empty object");
            assert!(!braces.contains('{'), "{name} was not rendered");
        }
    }
}
