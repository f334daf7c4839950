//! Claims: which shards of a replay this process folds, so that several processes share the work.
//!
//! A claim is a lock of an open transaction of its own, so it goes with the process whatever becomes of it. It spares double
//! work and no more: what keeps two processes from writing one shard is the shard's checkpoint.

use tokio_postgres::Client;

use crate::projector::Registered;
use crate::store::{Store, StoreError};

/// Begins a transaction that may stand still for as long as it takes.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = 0";

/// Until another statement comes, the last one of a transaction keeps its snapshot, and with it every row that is deleted
/// anywhere.
pub(crate) const RELEASE_SNAPSHOT: &str = "SET LOCAL idle_in_transaction_session_timeout = 0";

/// Claims a name until the transaction ends. False if somebody else has it.
pub(crate) async fn claim(store: &Store, client: &Client, name: &str) -> Result<bool, StoreError> {
    Ok(store.query_one(client, &store.sql.claim_shard, &[&name]).await?.get("claimed"))
}

/// Begins a transaction that claims a name. False, and no transaction is open, if somebody else has it.
pub(crate) async fn begin(store: &Store, client: &Client, name: &str) -> Result<bool, StoreError> {
    client.batch_execute(BEGIN).await?;
    let claimed = claim(store, client, name).await?;
    if !claimed {
        client.batch_execute("ROLLBACK").await?;
    }
    Ok(claimed)
}

/// What one process has claimed.
pub(super) struct Claims<'s> {
    store: &'s Store,
    client: Client,
    /// Each projector with its shards and those of them that are ours.
    shares: Vec<Share>,
}

struct Share {
    name: String,
    shards: Vec<i32>,
    ours: Vec<i32>,
}

impl<'s> Claims<'s> {
    /// Joins the replay of some projectors, each with the shards that have not arrived, and takes a fair share of them.
    pub(super) async fn take(
        store: &'s Store,
        unfinished: &[(&Registered, Vec<i32>)],
    ) -> Result<Self, StoreError> {
        let client = store.single().await?;
        client.batch_execute(BEGIN).await?;
        let shares = unfinished.iter().map(|(registered, shards)| Share {
            name: format!("{} {} v{}", store.schema, registered.target.projector, registered.major()),
            shards: shards.clone(),
            ours: Vec::new(),
        });
        let mut claims = Self { store, client, shares: shares.collect() };
        for share in &claims.shares {
            store.query_one(&claims.client, &store.sql.join_replay, &[&share.name]).await?;
        }
        claims.more().await?;
        Ok(claims)
    }

    /// The shards of one of the projectors that are ours.
    pub(super) fn ours(&self, projector: usize) -> &[i32] {
        &self.shares[projector].ours
    }

    /// Whether the work is to be shared out anew: processes came or went.
    pub(super) async fn unfair(&mut self) -> Result<bool, StoreError> {
        for share in &self.shares {
            if share.ours.len() > self.fair(share).await? {
                return Ok(true);
            }
        }
        self.more().await
    }

    /// Takes what is free, up to a fair share. Returns whether there was any.
    async fn more(&mut self) -> Result<bool, StoreError> {
        let mut any = false;
        for at in 0..self.shares.len() {
            let share = &self.shares[at];
            let fair = self.fair(share).await?;
            let mut ours = share.ours.clone();
            for shard in &share.shards {
                if ours.len() < fair && !ours.contains(shard) {
                    let name = format!("{} {shard}", share.name);
                    if claim(self.store, &self.client, &name).await? {
                        ours.push(*shard);
                        any = true;
                    }
                }
            }
            self.shares[at].ours = ours;
        }
        self.client.batch_execute(RELEASE_SNAPSHOT).await?;
        Ok(any)
    }

    /// How many shards each process takes.
    async fn fair(&self, share: &Share) -> Result<usize, StoreError> {
        let row = self.store.query_one(&self.client, &self.store.sql.replayers, &[&share.name]).await?;
        let processes = usize::try_from(row.get::<_, i64>("processes")).unwrap_or_default().max(1);
        Ok(share.shards.len().div_ceil(processes))
    }

    /// Gives the claims back.
    pub(super) async fn give_back(self) -> Result<(), StoreError> {
        Ok(self.client.batch_execute("COMMIT").await?)
    }
}
