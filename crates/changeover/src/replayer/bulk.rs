//! The bulk of the log, in parallel by row key.
//!
//! ```text
//! log ── connections ── decode ──┬── shard 1 ── rows and checkpoint
//!        (spans, in turn)        └── shard 2 ── rows and checkpoint
//! ```
//!
//! Several connections read spans of the log and decode them side by side; they are handed on in position order, and every
//! row is folded by exactly one shard, so the rows are those of a serial replay. Each shard writes its rows together with a
//! checkpoint of its own; when all have arrived at the same position, they become one checkpoint again. Every stage is bounded.
//!
//! What this does not do: feed anything that is live. A version whose shards have not met cannot be fed or activated by anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_postgres::Client;
use tracing::{debug, info};

use super::begun::Begun;
use super::claims::Claims;
use super::counted::{Counted, Events};
use super::fault::{Ended, Failed, Refused, next};
use super::options::Throttle;
use super::place::{Checkpoint, Place, Stopped, Writers};
use super::shard::Worker;
use super::source::{Reader, Reading, Source, Stretch};
use super::statements::Running;
use super::throttle::{Breaths, Throttled};
use super::{OnProgress, Pace, ReplayError, ReplayPhase, ReplayProgress, permit, position, split, throttle};
use crate::core::Core;
use crate::horizon;
use crate::projector::known::Known;
use crate::projector::parallel::Work;
use crate::projector::{ProjectError, Registered};
use crate::store::{Path, Store, StoreError};
use crate::words::names::ProjectorName;
use crate::words::position::{Generation, Position};

/// Stretches that a shard may be behind.
const AHEAD: usize = 2;

/// The same where they are small, so that one that writes in small pieces holds nobody up: those that are as large as they get take
/// up the same together.
const SMALL_AHEAD: usize = 16;

/// How long to wait for shards that other processes have claimed.
const BUSY: Duration = Duration::from_millis(50);

/// How often progress is reported.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// How often is looked how far the log has grown.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Replays what is far behind. What cannot be replayed in parallel, and what is not far behind, is left as it is.
pub(super) async fn replay(
    core: &Core,
    client: &Client,
    wanted: &[Begun],
    pace: &Pace,
    started: Instant,
    throttled: &mut Throttled,
    on_progress: OnProgress<'_>,
) -> Result<Events, ReplayError> {
    let mut events = Events::new();
    // COPY needs a server of its own for more than a transaction.
    if core.store.path != Path::Direct {
        return Ok(events);
    }
    let mut seen = Seen::default();
    let mut refused = None::<Refused>;
    loop {
        let open = open(core, client, wanted, pace, &mut seen).await?;
        let Some((open, up_to)) = next(open, &mut refused) else { return Ok(events) };
        let round = Round { core, pace, on_progress, started, end: Some(client), up_to, without: &[] };
        let ended = match refused.take_if(|refused| refused.is_one()) {
            None => round.run(client, &open, &mut events, throttled).await?,
            Some(refused) => refused.named(core, client).await?,
        };
        match ended {
            Ended::Done => {}
            // A round up to the middle, again and again, until one event is left.
            Ended::Refused(more) => refused = Some(more),
            Ended::Failed(failed) => {
                // What comes before the event at fault is written, whichever shard it is that cannot go on.
                let before = Position::new(failed.position.get() - 1);
                let one: Vec<Open> =
                    open.into_iter().filter(|open| open.registered.id().0 == failed.projector).collect();
                let round = Round { up_to: before, ..round };
                match round.run(client, &one, &mut events, throttled).await? {
                    Ended::Refused(earlier) => refused = Some(earlier),
                    Ended::Done | Ended::Failed(_) => return Err(failed.into()),
                }
            }
        }
    }
}

/// A projector whose shards have not met yet.
pub(super) struct Open {
    pub(super) registered: Arc<Registered>,
    attempt: i32,
    pub(super) up_to: Position,
    pub(super) shards: Vec<(i32, Position)>,
    /// Whether the tables came from elsewhere: then they may hold rows at position 0 as well.
    adopted: bool,
    generation: Generation,
}

/// Folds the log up to a position, but for some events, into tables that are empty and known to nobody else: they have no
/// checkpoint. Whoever made them drops them. Returns how many events there were.
pub(crate) async fn fold_afresh(
    core: &Core,
    registered: &Arc<Registered>,
    up_to: Position,
    without: &[Position],
    pace: &Pace,
    throttled: &mut Throttled,
    on_progress: OnProgress<'_>,
) -> Result<u64, ReplayError> {
    // What is written is worth nothing before everything is.
    let pace = &Pace { checkpoint_every: Duration::MAX, ..pace.clone() };
    let round = Round { core, pace, on_progress, started: Instant::now(), end: None, up_to, without };
    // Statements of the projector's own are to prove the split right as well.
    let shards = if registered.projector.needs_transaction() { 1 } else { shards(pace, registered) };
    let count = usize::try_from(shards).expect("BUG: a positive number");
    let writers = round.writers()?;
    let (mut workers, mut inputs) = (Workers::new(), Vec::new());
    for shard in 1..=shards {
        let (sender, receiver) = mpsc::channel(round.ahead());
        inputs.push(sender);
        let start = Start {
            projector: 0,
            position: Position::START,
            known: Known::Empty,
            checkpoint: Checkpoint::None,
        };
        workers.push((0, round.worker(&writers, registered, shard, count, start), receiver));
    }
    let counted = Counted::default();
    let mut fed = [Fed { registered: registered.clone(), shards: count, inputs, counted }];
    match round.fold(workers, &mut fed, Position::START, None, throttled).await? {
        Ended::Done => Ok(fed[0].counted.events),
        Ended::Failed(failed) => Err(failed.into()),
        Ended::Refused(refused) => Err(refused.into()),
    }
}

/// What a replay knows of its projectors from one round to the next.
#[derive(Default)]
struct Seen {
    /// Those whose shards were begun by the split that they declare.
    split: BTreeSet<ProjectorName>,
    /// How many positions the last bulk was to go through.
    lengths: BTreeMap<ProjectorName, i64>,
}

/// What is to be replayed in parallel; begins it where nobody has. A bulk is begun again while each is shorter than the one before: what
/// is appended as fast is left to steps, which know when to give up.
async fn open(
    core: &Core,
    client: &Client,
    wanted: &[Begun],
    pace: &Pace,
    seen: &mut Seen,
) -> Result<Vec<Open>, ReplayError> {
    let store = &core.store;
    let mut open = Vec::new();
    for Begun { registered, attempt } in wanted {
        let id: [&(dyn postgres_types::ToSql + Sync); 2] =
            [&registered.target.projector.as_str(), &registered.major()];
        let permit = permit(store, client, registered, *attempt).await?;
        let mut shards = store.query(client, &store.sql.shards, &id).await?;
        if shards.is_empty() {
            let horizon = horizon::look(store, client).await?.horizon;
            let at = position(core, client, registered).await?;
            let (behind, before) = (horizon.get() - at.get(), seen.lengths.get(&registered.target.projector));
            if behind <= pace.parallel_above_events || before.is_some_and(|before| behind >= *before) {
                continue;
            }
            seen.lengths.insert(registered.target.projector.clone(), behind);
            let count = self::shards(pace, registered);
            let sample = split::sample(store, client, registered, (at, horizon)).await?;
            let params = [id[0], id[1], &horizon, &count, attempt, &sample];
            store.query(client, &store.sql.begin_shards, &params).await?;
            shards = store.query(client, &store.sql.shards, &id).await?;
        }
        let Some(first) = shards.first() else { continue };
        let up_to: Position = first.get("parallel_to");
        if seen.split.insert(registered.target.projector.clone()) {
            let between = (first.get("began_at"), up_to);
            split::is_ours(store, client, registered, between, first.get("split"), shards.len()).await?;
        }
        let shards: Vec<(i32, Position)> =
            shards.iter().map(|row| (row.get("shard"), row.get("position"))).collect();
        if shards.iter().all(|(_, position)| *position >= up_to) {
            store.query(client, &store.sql.end_shards, &id).await?;
            info!(projector = %registered.target.projector, position = %up_to, "the bulk is replayed");
            continue;
        }
        let adopted = first.get("adopted");
        open.push(Open {
            registered: registered.clone(),
            attempt: *attempt,
            up_to,
            shards,
            adopted,
            generation: permit.generation,
        });
    }
    Ok(open)
}

/// Refuses where shards have to meet first and nobody behind this path could help them: a pooler is in between.
pub(super) async fn can_go_on(
    core: &Core,
    client: &Client,
    registered: &Registered,
) -> Result<(), ReplayError> {
    let id: [&(dyn postgres_types::ToSql + Sync); 2] =
        [&registered.target.projector.as_str(), &registered.major()];
    if core.store.path == Path::Direct
        || core.store.query(client, &core.store.sql.shards, &id).await?.is_empty()
    {
        return Ok(());
    }
    let (projector, version) = registered.id();
    Err(ReplayError::NeedsDirectConnection { projector, version })
}

/// How many shards there are to be.
fn shards(pace: &Pace, registered: &Registered) -> i32 {
    let most = i32::try_from(registered.projector.parallel().most_shards()).unwrap_or(i32::MAX);
    pace.shards.map_or_else(processors, i32::from).clamp(1, most)
}

fn processors() -> i32 {
    const MOST: usize = 16;
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    i32::try_from(processors.clamp(2, MOST)).expect("BUG: a small number")
}

/// Positions that one statement looks at.
///
/// A statement that waits for shards keeps its snapshot, and with it the versions of rows that SQL projectors change again and
/// again. So what these read is short enough to be read in one go.
fn span(fed: &[Fed], throttle: &Throttle) -> i64 {
    const SPAN: usize = 32_768;
    let shards = fed.iter().filter(|fed| fed.registered.projector.needs_transaction()).map(|fed| fed.shards);
    let span = throttle.span(shards.max().map_or(SPAN, |shards| SPAN.min(throttle::SHORT_SPAN * shards)));
    i64::try_from(span).expect("BUG: a small number")
}

/// One go through a part of the log, for the shards that are ours.
#[derive(Clone, Copy)]
struct Round<'a> {
    core: &'a Core,
    pace: &'a Pace,
    on_progress: OnProgress<'a>,
    started: Instant,
    /// The connection that looks how far the log has grown; none where that is of no interest.
    end: Option<&'a Client>,
    up_to: Position,
    /// Events that are left out.
    without: &'a [Position],
}

/// How a shard starts.
struct Start {
    projector: usize,
    position: Position,
    known: Known,
    checkpoint: Checkpoint,
}

/// Shards, each with its projector's place among them and with what it is handed.
type Workers = Vec<(usize, AnyWorker, mpsc::Receiver<Arc<Stretch>>)>;

/// A shard of either kind.
enum AnyWorker {
    Rows(Worker),
    Statements(Running),
}

impl AnyWorker {
    async fn run(self, input: mpsc::Receiver<Arc<Stretch>>) -> Result<(), Stopped> {
        match self {
            Self::Rows(worker) => worker.run(input).await,
            Self::Statements(running) => running.run(input).await,
        }
    }
}

/// A projector in a round.
struct Fed {
    registered: Arc<Registered>,
    /// How many shards its rows are split into, ours and others'.
    shards: usize,
    /// Those of ours; none any more once it has failed.
    inputs: Vec<mpsc::Sender<Arc<Stretch>>>,
    counted: Counted,
}

impl Fed {
    fn reader(&self) -> Reader {
        Reader { registered: self.registered.clone(), shards: self.shards, counted: self.counted.up_to }
    }
}

/// How far the log has grown.
struct End {
    horizon: Position,
    looked: Option<Instant>,
}

impl Round<'_> {
    async fn run(
        &self,
        client: &Client,
        open: &[Open],
        events: &mut Events,
        throttled: &mut Throttled,
    ) -> Result<Ended, ReplayError> {
        let store = &self.core.store;
        let unfinished: Vec<(&Registered, Vec<i32>)> = open
            .iter()
            .map(|open| {
                let behind = open.shards.iter().filter(|(_, position)| *position < self.up_to);
                (&*open.registered, behind.map(|(shard, _)| *shard).collect())
            })
            .collect();
        let mut claims = Claims::take(store, &unfinished).await?;
        let (workers, mut fed, after) = self.workers(client, open, &claims, events).await?;
        if workers.is_empty() {
            claims.give_back().await?;
            // Others are at it, or have just arrived.
            sleep(BUSY).await;
            return Ok(Ended::Done);
        }
        let ended = self.fold(workers, &mut fed, after, Some(&mut claims), throttled).await?;
        for fed in &fed {
            events.insert(fed.registered.target.projector.clone(), fed.counted);
        }
        claims.give_back().await?;
        Ok(ended)
    }

    /// Lets shards fold the log, and waits until they have written what they folded.
    async fn fold(
        &self,
        workers: Workers,
        fed: &mut [Fed],
        after: Position,
        claims: Option<&mut Claims<'_>>,
        throttled: &mut Throttled,
    ) -> Result<Ended, ReplayError> {
        let mut running = JoinSet::new();
        for (projector, worker, input) in workers {
            running.spawn(async move { (projector, worker.run(input).await) });
        }
        let mut failed = self.feed(claims, fed, after, throttled).await?;
        let mut refused = None;
        for fed in fed.iter_mut() {
            fed.inputs.clear();
        }
        while let Some(stopped) = running.join_next().await {
            let (projector, stopped) = stopped.expect("BUG: a shard panicked");
            let (projector, version) = fed[projector].registered.id();
            match stopped {
                Ok(()) => {}
                Err(Stopped::Event { position, event_type, source }) => {
                    if failed.as_ref().is_none_or(|failed| position < failed.position) {
                        failed = Some(Failed { projector, version, position, event_type, source });
                    }
                }
                Err(Stopped::Refused { shard, after, up_to, source }) => {
                    refused = Some(Refused { projector, version, shard, after, up_to, source });
                }
                Err(Stopped::Other(error @ ReplayError::Overtaken { .. })) => debug!(%error, "going on"),
                Err(Stopped::Other(ReplayError::Store(error))) if error.is_outage() => {
                    return Err(ReplayError::Outage { projector, version, source: error.into() });
                }
                Err(Stopped::Other(error)) => return Err(error),
            }
        }
        // The event that is known is the one to go on with: what comes before it is yet to be written.
        Ok(failed.map(Ended::Failed).or(refused.map(Ended::Refused)).unwrap_or(Ended::Done))
    }

    /// The shards that are ours, each with what it is fed by; and the position after which the first of them goes on.
    async fn workers(
        &self,
        client: &Client,
        open: &[Open],
        claims: &Claims<'_>,
        events: &Events,
    ) -> Result<(Workers, Vec<Fed>, Position), ReplayError> {
        let store = &self.core.store;
        let ours: usize = (0..open.len()).map(|projector| claims.ours(projector).len()).sum();
        let writers = self.writers()?;
        let (mut workers, mut fed, mut after) = (Vec::new(), Vec::new(), self.up_to);
        for (projector, open) in open.iter().enumerate() {
            let (mut inputs, mut from) = (Vec::new(), self.up_to);
            // Once more: whoever had the claim before has moved it.
            let positions = self.positions(store, client, &open.registered).await?;
            for shard in claims.ours(projector) {
                let Some(position) = positions.get(shard).copied().filter(|at| *at < self.up_to) else {
                    continue;
                };
                let is_empty = position == Position::START && !open.adopted;
                let known = if is_empty { Known::Empty } else { Known::Nothing };
                let (sender, receiver) = mpsc::channel(self.ahead());
                inputs.push(sender);
                from = from.min(position);
                let checkpoint = Checkpoint::Kept { attempt: open.attempt, generation: open.generation };
                let start = Start { projector, position, known, checkpoint };
                workers.push((
                    projector,
                    self.worker(&writers, &open.registered, *shard, ours, start),
                    receiver,
                ));
            }
            after = after.min(from);
            let before = events.get(&open.registered.target.projector).copied().unwrap_or_default();
            let counted = Counted { up_to: before.up_to.max(from), ..before };
            fed.push(Fed { registered: open.registered.clone(), shards: open.shards.len(), inputs, counted });
        }
        Ok((workers, fed, after))
    }

    /// A shard that goes on at a position.
    fn worker(
        &self,
        writers: &Writers,
        registered: &Arc<Registered>,
        shard: i32,
        shards: usize,
        Start { projector, position, known, checkpoint }: Start,
    ) -> AnyWorker {
        let at = Place {
            store: self.core.store.clone(),
            registered: registered.clone(),
            shard,
            written: position,
            checkpoint,
        };
        let (writers, checkpoint_every) = (writers.clone(), self.pace.checkpoint_every);
        let place = usize::try_from(shard - 1).expect("BUG: shards begin at 1");
        match registered.projector.parallel().shard(place, known) {
            Work::Rows(rows) => AnyWorker::Rows(Worker {
                at,
                writers,
                projector,
                rows,
                folded: position,
                memory_bytes: self.pace.memory_bytes / 4 * 3 / shards,
                checkpoint_every,
            }),
            Work::Statements(statements) => AnyWorker::Statements(Running {
                writers,
                projector,
                statements,
                at,
                seen: position,
                checkpoint_every,
            }),
        }
    }

    /// The connections that write.
    fn writers(&self) -> Result<Writers, StoreError> {
        let writers = self.pace.max_connections.saturating_sub(self.readers() + 1).max(1);
        let breaths = self.pace.throttle.events_per_sec.map(|_| Breaths::default());
        Writers::new(&self.core.store, writers, breaths)
    }

    /// Stretches that a shard may be behind.
    fn ahead(&self) -> usize {
        if self.pace.throttle.at_once().is_some() { SMALL_AHEAD } else { AHEAD }
    }

    async fn positions(
        &self,
        store: &Store,
        client: &Client,
        registered: &Registered,
    ) -> Result<BTreeMap<i32, Position>, StoreError> {
        let projector = registered.target.projector.as_str();
        let rows = store.query(client, &store.sql.shards, &[&projector, &registered.major()]).await?;
        Ok(rows.iter().map(|row| (row.get("shard"), row.get("position"))).collect())
    }

    fn readers(&self) -> usize {
        (self.pace.max_connections / 3).clamp(1, 4)
    }

    /// Hands the log on, until its end, until nobody wants it, or until the work is to be shared out anew.
    async fn feed(
        &self,
        mut claims: Option<&mut Claims<'_>>,
        fed: &mut [Fed],
        after: Position,
        throttled: &mut Throttled,
    ) -> Result<Option<Failed>, ReplayError> {
        let store = &self.core.store;
        let piece_bytes = self.pace.memory_bytes / 64 * AHEAD / self.ahead();
        let mut source = Source::start(Reading {
            store: store.clone(),
            readers: fed.iter().map(Fed::reader).collect(),
            after,
            up_to: self.up_to,
            span: span(fed, &self.pace.throttle),
            without: self.without.to_vec(),
            connections: self.readers(),
            piece_bytes: piece_bytes.clamp(64 << 10, 2 << 20),
            piece_events: self.pace.throttle.at_once().unwrap_or(usize::MAX),
        });
        let (mut end, mut at) = (End { horizon: self.up_to, looked: None }, after);
        let (mut shared, mut reported) = (Instant::now(), None::<Instant>);
        let mut failed = None;
        while let Some(mut stretch) = source.next().await? {
            throttled.wait(stretch.events).await;
            while throttled.pauses().await? {
                self.report(&mut end, fed, at, ReplayPhase::Paused).await?;
            }
            let parts: Vec<(u64, Option<ProjectError>)> =
                stretch.parts.iter_mut().map(|part| (part.events, part.failed.take())).collect();
            let reached = stretch.reached;
            at = reached;
            let stretch = Arc::new(stretch);
            for (fed, (events, failure)) in fed.iter_mut().zip(parts) {
                let sent = join_all(fed.inputs.iter().map(|input| input.send(stretch.clone()))).await;
                let mut sent = sent.iter().map(Result::is_ok);
                fed.inputs.retain(|_| sent.next().unwrap_or_default());
                if !fed.inputs.is_empty() {
                    fed.counted.count(events, reached);
                }
                if let Some(source) = failure {
                    fed.inputs.clear();
                    if failed.is_none()
                        && let Some((position, event_type)) = source.event()
                    {
                        let event_type = event_type.to_owned();
                        let (projector, version) = fed.registered.id();
                        failed = Some(Failed { projector, version, position, event_type, source });
                    }
                }
            }
            if reported.is_none_or(|reported| reported.elapsed() >= REPORT_EVERY) {
                reported = Some(Instant::now());
                self.report(&mut end, fed, at, ReplayPhase::Bulk).await?;
            }
            if fed.iter().all(|fed| fed.inputs.is_empty()) {
                break;
            }
            if shared.elapsed() >= self.pace.checkpoint_every {
                shared = Instant::now();
                if let Some(claims) = claims.as_deref_mut()
                    && claims.unfair().await?
                {
                    debug!("the replay is shared out anew");
                    break;
                }
            }
        }
        Ok(failed)
    }

    async fn report(
        &self,
        end: &mut End,
        fed: &[Fed],
        position: Position,
        phase: ReplayPhase,
    ) -> Result<(), StoreError> {
        // The log grows meanwhile: what is behind a mark that stands still is not the lag.
        if let Some(client) = self.end
            && end.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY)
        {
            end.horizon = self.up_to.max(horizon::look(&self.core.store, client).await?.horizon);
            end.looked = Some(Instant::now());
        }
        for fed in fed.iter().filter(|fed| !fed.inputs.is_empty()) {
            let (projector, version) = fed.registered.id();
            (self.on_progress)(&ReplayProgress {
                projector,
                version,
                position,
                horizon: end.horizon,
                phase,
                events: fed.counted.events,
                indexing: None,
                elapsed: self.started.elapsed(),
            });
        }
        Ok(())
    }
}
