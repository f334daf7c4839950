//! Transactions that are begun by hand: BEGIN travels with the first statements, COMMIT with the last ones.

use deadpool_postgres::Client;
use futures_util::future::{FutureExt, join, join3};

use super::{On, StoreError};

/// Whatever the session's default is: what a later statement reads is to be what was committed before it.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// A transaction that was begun by hand. Dropped halfway, it is rolled back at once: the connection may lie in the pool for
/// long, and what the transaction locked would hold up the horizon and every activation.
pub(crate) struct Open<'c>(&'c Client);

impl<'c> Open<'c> {
    /// Sends a whole transaction at once: BEGIN, what `work` sends at its first poll, COMMIT.
    pub(crate) async fn whole<T, E: From<StoreError>>(
        client: &'c Client,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let open = Self::on_its_way(client);
        let (begun, done, committed) = join3(execute(client, BEGIN), work, execute(client, "COMMIT")).await;
        std::mem::forget(open);
        begun?;
        let done = done?;
        committed?;
        Ok(done)
    }

    /// One that is to be begun on a connection.
    pub(crate) fn on_its_way(client: &'c Client) -> Self {
        Self(client)
    }

    /// Sends BEGIN, and right behind it what `first` sends at its first poll: statements that were made
    /// [`ready`](super::Store::ready) before. Gives what came of those.
    pub(crate) async fn begin<T>(&self, first: impl Future<Output = T>) -> Result<T, StoreError> {
        let (begun, first) = join(execute(self.0, BEGIN), first).await;
        begun?;
        Ok(first)
    }

    /// Where its statements run.
    pub(crate) fn statements(&self) -> On<'c> {
        On::Client(self.0)
    }

    /// Sends COMMIT right behind what `last` sends at its first poll. Where a statement fails, the server makes the commit a
    /// rollback.
    pub(crate) async fn commit<T, E: From<StoreError>>(
        self,
        last: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let (last, committed) = join(last, execute(self.0, "COMMIT")).await;
        std::mem::forget(self);
        let last = last?;
        committed?;
        Ok(last)
    }

    /// Ends it as if it had never been.
    pub(crate) async fn roll_back(self) -> Result<(), StoreError> {
        execute(self.0, "ROLLBACK").await?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // The first poll sends it, behind all that was sent before.
        let _ = self.0.batch_execute("ROLLBACK").now_or_never();
    }
}

async fn execute(client: &Client, sql: &str) -> Result<(), StoreError> {
    Ok(client.batch_execute(sql).await?)
}
