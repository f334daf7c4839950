//! What every part of a running instance shares.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Pool;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::decider::Decider;
use crate::due::Due;
use crate::projector::configuration::Configuration;
use crate::store::connect::Untouched;
use crate::store::{Lent, Store, StoreError};
use crate::wake::{Signals, Waker};
use crate::words::position::Position;

/// Shared by everything that an instance does.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) store: Arc<Store>,
    pub(crate) configuration: Configuration,
    pub(crate) decider: Decider,
    /// Something may have been appended.
    pub(crate) waker: Waker,
    /// Something was appended that background projectors of ours handle.
    pub(crate) due: Due,
    /// The states of the projectors may have changed.
    pub(crate) states_changed: Waker,
    /// Something was appended here that other processes should hear of.
    pub(crate) announce: Notify,
    /// A projector of ours moved its checkpoint here.
    pub(crate) published: Waker,
    pub(crate) signals: Signals,
    pub(crate) activation_wait: Duration,
    /// Whether this process keeps stable views.
    pub(crate) stable_views: bool,
    /// How many connections of the application's pool are opened before they are needed.
    pub(crate) ready_connections: usize,
    /// Connections for publishing, so that a busy application cannot keep its own read models from being fed.
    pub(crate) background: Pool,
    pub(crate) background_untouched: Untouched,
    pub(crate) identity: Identity,
}

/// Who this instance is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) id: Uuid,
    pub(crate) application: String,
    pub(crate) application_version: String,
    pub(crate) address: Option<String>,
}

impl Core {
    /// A connection for work in the background.
    pub(crate) async fn background(&self) -> Result<Lent, StoreError> {
        Lent::from(&self.background, &self.background_untouched).await
    }

    /// The server was lost: what was known of it may not hold any more.
    pub(crate) fn forget(&self) {
        self.decider.forget();
        self.due.forget();
    }

    /// Events of these types, up to a position, were committed.
    pub(crate) fn appended(&self, types: &[String], up_to: Position) {
        if self.signals.in_process {
            self.due.appended(types, up_to);
        }
        self.announce();
    }

    /// Something was appended that soon will be committed.
    pub(crate) fn appending(&self) {
        if self.signals.in_process {
            self.waker.wake();
        }
        self.announce();
    }

    fn announce(&self) {
        if self.signals.notify.is_some() {
            self.announce.notify_one();
        }
    }
}
