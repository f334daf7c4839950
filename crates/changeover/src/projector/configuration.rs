//! The configuration: the set of projectors with their versions that one build of the application registers.

use std::collections::BTreeMap;
use std::sync::Arc;

use semver::Version;
use serde::de::DeserializeOwned;

use super::fold::{FoldProjector, Folding};
use super::sql::{Running, SqlProjector};
use super::{Project, Registered};
use crate::codec::event_types;
use crate::words::decision::Versions;
use crate::words::fingerprint::Fingerprint;
use crate::words::names::{InvalidName, ProjectorName};
use crate::words::plan::Target;
use crate::words::state::Delivery;

/// Why a projector cannot be part of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigurationError {
    /// Its name is not one.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A projector of that name is registered already.
    #[error("projector {0} is registered twice")]
    Twice(ProjectorName),
    /// Its stable views would stand among the tables of another projector.
    #[error(
        "projector {views} would keep its stable views in the schema that is for tables of projector {tables}: rename one of them"
    )]
    SchemaTaken {
        /// The projector of the views.
        views: ProjectorName,
        /// The projector of the tables.
        tables: ProjectorName,
    },
    /// Its event type is not an enum, so nobody can tell which event types it handles.
    #[error("the event type of projector {0} is not an enum whose variants are event types")]
    NoEventTypes(ProjectorName),
    /// The DDL of a SQL projector does not say where its tables go.
    #[error("the tables of projector {0} must be created in {{schema}}, which its DDL does not name")]
    NoSchema(ProjectorName),
}

/// A projector that a configuration does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this build registers no projector {projector}; it has {}", listed(.registered))]
pub struct NotRegistered {
    /// The name that was given.
    pub projector: ProjectorName,
    /// What there is.
    pub registered: Vec<ProjectorName>,
}

fn listed(names: &[ProjectorName]) -> String {
    let names: Vec<&str> = names.iter().map(ProjectorName::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// What creates secondary indexes.
#[derive(Debug)]
pub(crate) enum Indexes {
    /// Each by itself.
    Each(Vec<Index>),
    /// All of them, to be run once.
    Whole(String),
}

/// A secondary index.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    /// Its name, with that of its schema.
    pub(crate) name: String,
    /// What creates it, and does nothing where it is there.
    pub(crate) create: String,
}

impl Indexes {
    /// All of them in one piece.
    pub(crate) fn all(&self) -> String {
        match self {
            Self::Each(indexes) => indexes.iter().map(|index| index.create.as_str()).collect(),
            Self::Whole(statements) => statements.clone(),
        }
    }
}

/// What a projector is in one schema.
pub(crate) struct Built {
    pub(crate) tables: String,
    pub(crate) indexes: Indexes,
    pub(crate) projector: Box<dyn Project>,
}

/// The projectors of one build of the application, each with its version.
///
/// See [`FoldProjector`] and [`SqlProjector`] for what goes into it.
#[derive(Debug, Clone, Default)]
pub struct Configuration {
    pub(crate) projectors: BTreeMap<ProjectorName, Arc<Registered>>,
}

impl Configuration {
    /// Without projectors. A process that has none may append as long as none is active; later it is refused, as one that
    /// does not know them.
    pub fn new() -> Self {
        Self::default()
    }

    /// A projector of these.
    pub(crate) fn get(&self, projector: &ProjectorName) -> Result<&Arc<Registered>, NotRegistered> {
        self.projectors.get(projector).ok_or_else(|| NotRegistered {
            projector: projector.clone(),
            registered: self.projectors.keys().cloned().collect(),
        })
    }

    /// Adds a projector made of folds.
    ///
    /// # Errors
    ///
    /// Its name is none, or taken, or that of a schema for another one's tables; its event type is not an enum.
    pub fn fold<P: FoldProjector>(self, _projector: P) -> Result<Self, ConfigurationError> {
        self.add::<P::Event>(P::NAME, P::VERSION, P::DELIVERY, |schema| {
            let folding = Folding::of::<P>(schema);
            let definitions = folding.definitions();
            let tables = definitions.iter().map(|d| d.table.as_str()).collect();
            let indexes = definitions.into_iter().flat_map(|d| d.indexes).collect();
            Built { tables, indexes: Indexes::Each(indexes), projector: Box::new(folding) }
        })
    }

    /// Adds a projector that runs its own SQL.
    ///
    /// # Errors
    ///
    /// Its name is none, or taken, or that of a schema for another one's tables; its event type is not an enum; its DDL does not name `{schema}`.
    pub fn sql<P: SqlProjector>(self, projector: P) -> Result<Self, ConfigurationError> {
        if !P::TABLES.contains("{schema}") {
            return Err(ConfigurationError::NoSchema(P::NAME.parse()?));
        }
        let projector = Arc::new(projector);
        self.add::<P::Event>(P::NAME, P::VERSION, P::DELIVERY, move |schema| {
            let render = |ddl: &str| {
                format!("{};\n", ddl.replace("{schema}", schema).trim_end_matches([';', '\n', ' ']))
            };
            let indexes = if P::INDEXES.is_empty() { String::new() } else { render(P::INDEXES) };
            let running = Running { projector: projector.clone(), schema: schema.to_owned() };
            Built {
                tables: render(P::TABLES),
                indexes: Indexes::Whole(indexes),
                projector: Box::new(running),
            }
        })
    }

    fn add<E: DeserializeOwned>(
        mut self,
        name: &str,
        version: Version,
        delivery: Delivery,
        build: impl Fn(&str) -> Built + Send + Sync + 'static,
    ) -> Result<Self, ConfigurationError> {
        let name: ProjectorName = name.parse()?;
        if self.projectors.contains_key(&name) {
            return Err(ConfigurationError::Twice(name));
        }
        for other in self.projectors.keys() {
            for (views, tables) in [(&name, other), (other, &name)] {
                if tables.keeps_tables_in(views.as_str()) {
                    let (views, tables) = (views.clone(), tables.clone());
                    return Err(ConfigurationError::SchemaTaken { views, tables });
                }
            }
        }
        let mut types: Vec<String> = event_types::<E>()
            .ok_or_else(|| ConfigurationError::NoEventTypes(name.clone()))?
            .into_iter()
            .map(str::to_owned)
            .collect();
        types.sort_unstable();
        let schema = name.tables_schema(version.major);
        let Built { tables, indexes, projector } = build(&schema);
        let tables_fingerprint = Fingerprint::of([tables.as_str()]);
        let definition = [delivery.as_str(), tables_fingerprint.as_str()];
        let fingerprint = Fingerprint::of(definition.into_iter().chain(types.iter().map(String::as_str)));
        let registered = Registered {
            target: Target { projector: name.clone(), version, delivery, fingerprint, tables_fingerprint },
            event_types: types,
            tables,
            indexes,
            schema,
            projector,
            build: Arc::new(build),
        };
        self.projectors.insert(name, Arc::new(registered));
        Ok(self)
    }

    /// Each projector with its version.
    pub fn versions(&self) -> Versions {
        self.projectors.iter().map(|(name, p)| (name.clone(), p.target.version.clone())).collect()
    }

    /// Whether an append may run SQL that is not ours.
    pub(crate) fn runs_sql_inline(&self) -> bool {
        let mut inline = self.projectors.values().filter(|p| p.target.delivery == Delivery::Inline);
        inline.any(|registered| registered.projector.needs_transaction())
    }

    /// The projectors, as a plan reads them.
    pub(crate) fn targets(&self) -> Vec<Target> {
        self.projectors.values().map(|registered| registered.target.clone()).collect()
    }
}
