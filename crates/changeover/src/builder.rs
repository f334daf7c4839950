//! Setting an instance up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_postgres::Config;
use uuid::Uuid;

use crate::core::{Core, Identity};
use crate::decider::{Decider, WhenNothingIsActive};
use crate::due::Due;
use crate::front::Changeover;
use crate::projector::configuration::Configuration;
use crate::registration;
use crate::store::connect::{self, Untouched};
use crate::store::migrate::{self, MigrateError};
use crate::store::{Store, StoreError};
use crate::wake::{Signals, Waker};
use crate::words::names::{ProjectorName, SchemaName};
use crate::words::plan::Obstacle;

/// Why an instance could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The schema does not fit this release.
    #[error(transparent)]
    Schema(#[from] MigrateError),
    /// What the database knows of a projector contradicts this build.
    #[error(transparent)]
    Obstacle(#[from] Obstacle),
    /// Tables or stable views of a projector would stand in Changeover's own schema.
    #[error(
        "projector {projector} would use the schema {schema}, which holds Changeover's own tables: rename one of them"
    )]
    SchemaTaken {
        /// The projector.
        projector: ProjectorName,
        /// The schema.
        schema: String,
    },
    /// The database did not do as asked.
    #[error("the database cannot be used")]
    Store(#[from] StoreError),
}

/// Sets an instance up. See [`Changeover::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    config: Config,
    schema: SchemaName,
    configuration: Configuration,
    application: String,
    application_version: String,
    address: Option<String>,
    pool_size: usize,
    ready_connections: usize,
    signals: Signals,
    activation_wait: Duration,
    when_nothing_is_active: WhenNothingIsActive,
    stable_views: bool,
}

impl Changeover {
    /// Begins to set an instance up for the database that `config` names.
    pub fn builder(config: Config) -> Builder {
        Builder::new(config)
    }
}

impl Builder {
    fn new(config: Config) -> Self {
        Self {
            config,
            schema: SchemaName::default(),
            configuration: Configuration::new(),
            application: "application".to_owned(),
            application_version: "0.0.0".to_owned(),
            address: None,
            pool_size: 16,
            ready_connections: 8,
            signals: Signals::default(),
            activation_wait: Duration::from_secs(3),
            when_nothing_is_active: WhenNothingIsActive::default(),
            stable_views: true,
        }
    }

    /// Changeover's schema; `changeover` unless set.
    #[must_use]
    pub fn schema(mut self, schema: SchemaName) -> Self {
        self.schema = schema;
        self
    }

    /// The projectors of this build.
    #[must_use]
    pub fn configuration(mut self, configuration: Configuration) -> Self {
        self.configuration = configuration;
        self
    }

    /// The application's name and version, for people and for the list of instances.
    #[must_use]
    pub fn application(mut self, name: &str, version: &str) -> Self {
        name.clone_into(&mut self.application);
        version.clone_into(&mut self.application_version);
        self
    }

    /// Where other instances reach this one, for instance `http://10.0.0.7:8080`.
    #[must_use]
    pub fn address(mut self, address: &str) -> Self {
        self.address = Some(address.to_owned());
        self
    }

    /// How many connections the application's own pool has at most; 16 unless set. Publishing has four more of its own,
    /// and the instance two: one to decide on, one to listen on.
    #[must_use]
    pub fn pool_size(mut self, size: usize) -> Self {
        self.pool_size = size;
        self
    }

    /// How many connections of the application's pool [`start`](Changeover::start) opens and readies for an append; 8 unless set, and never
    /// more than the pool has. The traffic that comes to an instance at the moment of a switch finds them there.
    #[must_use]
    pub fn ready_connections(mut self, count: usize) -> Self {
        self.ready_connections = count;
        self
    }

    /// Which signals wake the publisher; all unless set.
    #[must_use]
    pub fn signals(mut self, signals: Signals) -> Self {
        self.signals = signals;
        self
    }

    /// How long an append waits while a projector is being switched; three seconds unless set: longer than
    /// the pause of an activation may last, so that one which dies there fails no append.
    #[must_use]
    pub fn activation_wait(mut self, wait: Duration) -> Self {
        self.activation_wait = wait;
        self
    }

    /// What to do while nothing was ever activated; [`WhenNothingIsActive::AssumeOurs`] unless set.
    #[must_use]
    pub fn when_nothing_is_active(mut self, what: WhenNothingIsActive) -> Self {
        self.when_nothing_is_active = what;
        self
    }

    /// Whether views `<projector>.<table>` are kept that always show the active version, for readers outside the application;
    /// true unless set. They are made and moved by whoever activates a configuration, right after the switch, and by the
    /// first instance ever, where it makes its own configuration the active one. Views that are there stay as they are while this
    /// is off.
    #[must_use]
    pub fn stable_views(mut self, keep: bool) -> Self {
        self.stable_views = keep;
        self
    }

    /// Brings Changeover's schema up to date. Any number of processes may do so at once. Returns what was applied.
    pub async fn migrate(&self) -> Result<Vec<i32>, MigrateError> {
        migrate::migrate(&self.config, &self.schema).await
    }

    /// Connects and checks: the schema against this release, the projectors against what the database knows of them.
    /// Starts nothing; see [`Changeover::start`].
    ///
    /// # Errors
    ///
    /// The database cannot be reached; the schema is older, or newer and breaking, or a projector's; a projector's version was
    /// registered with another definition.
    pub async fn connect(self) -> Result<Changeover, ConnectError> {
        const BACKGROUND_POOL: usize = 4;
        let schema = self.schema.as_str();
        let uses_it = |name: &&ProjectorName| name.as_str() == schema || name.keeps_tables_in(schema);
        if let Some(projector) = self.configuration.projectors.keys().find(uses_it) {
            let (projector, schema) = (projector.clone(), schema.to_owned());
            return Err(ConnectError::SchemaTaken { projector, schema });
        }
        let mut config = self.config;
        if config.get_application_name().is_none() {
            config.application_name(format!("{} {}", self.application, self.application_version));
        }
        migrate::check(&config, &self.schema).await?;
        let store = Arc::new(Store::open(config, self.schema, self.pool_size).await?);
        let client = store.client().await?;
        let registry = registration::registry(&store, &client).await?;
        if let Some(obstacle) = registration::obstacles(&self.configuration, &registry).next() {
            return Err(obstacle.into());
        }
        drop(client);
        let decider = Decider::new(
            store.clone(),
            self.configuration.clone(),
            self.when_nothing_is_active,
            self.stable_views,
        );
        let background_untouched = Untouched::default();
        let background = connect::pool(&store.config, BACKGROUND_POOL, background_untouched.clone())?;
        Ok(Changeover {
            core: Arc::new(Core {
                store,
                due: Due::of(&self.configuration),
                configuration: self.configuration,
                decider,
                waker: Waker::new(),
                states_changed: Waker::new(),
                announce: Notify::new(),
                published: Waker::new(),
                signals: self.signals,
                activation_wait: self.activation_wait,
                ready_connections: self.ready_connections.min(self.pool_size),
                stable_views: self.stable_views,
                background,
                background_untouched,
                identity: Identity {
                    id: Uuid::now_v7(),
                    application: self.application,
                    application_version: self.application_version,
                    address: self.address,
                },
            }),
        })
    }
}
