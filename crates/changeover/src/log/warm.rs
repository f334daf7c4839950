//! Connections that are open, and know how to append, before a request needs them.
//!
//! At a switch all traffic comes to instances that have waited, at one moment. What has queued up in the pause would meet a
//! server that starts a process for each connection, each of which reads the catalogs and plans its first append.

use std::sync::Arc;

use futures_util::future::join_all;
use postgres_types::{Json, ToSql};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::core::Core;
use crate::projector::{Registered, chain};
use crate::store::{Lent, On, StoreError};
use crate::words::position::{Generation, Revision};
use crate::words::state::Delivery;

/// Opens connections of the application's pool and lets them rehearse an append. If that fails, requests will find out.
pub(crate) async fn warm(core: Arc<Core>, stop: CancellationToken) {
    // All of them are held until the last is ready: one that came back early would be taken again.
    let rehearsals = (0..core.ready_connections).map(|_| rehearse(&core));
    let rehearsed = tokio::select! {
        rehearsed = join_all(rehearsals) => rehearsed,
        () = stop.cancelled() => return,
    };
    for lent in rehearsed {
        match lent {
            Ok(lent) => lent.give_back_untouched(),
            Err(error) => debug!(error = %chain(&error), "a connection could not be made ready"),
        }
    }
}

/// An append under a generation that there never is: it is refused before it takes a lease, and writes nothing.
async fn rehearse(core: &Core) -> Result<Lent, StoreError> {
    let (store, sql) = (&core.store, &core.store.sql);
    let lent = store.lent().await?;
    let on = On::from(&lent);
    for append in [&sql.append_first, &sql.append_new, &sql.append] {
        store.ready(on, append).await?;
    }
    let inline = core.configuration.projectors.values().filter(|registered| is_inline(registered));
    for write in inline.flat_map(|registered| registered.projector.writes()) {
        store.ready(on, write).await?;
    }
    let none: ([&str; 0], [Json<&RawValue>; 0]) = ([], []);
    let (types, data) = (&none.0[..], &none.1[..]);
    let params: [&(dyn ToSql + Sync); 6] =
        [&Generation::new(-1), &"", &Revision::default(), &types, &data, &data];
    store.query(on, &sql.append_at, &params).await?;
    Ok(lent)
}

fn is_inline(registered: &Registered) -> bool {
    registered.target.delivery == Delivery::Inline
}
