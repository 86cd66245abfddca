//! Keeps streams and consumers there, and notices when they are not the ones of before.
//!
//! Every process looks for itself, because acks that it keeps from before a stream was made anew must be dropped.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::{AT_ONCE, Deps, Error, repeat, wake_ups};
use crate::broker::{Broker, findings::Stream, topology::WorkStream};

/// How often it is asked whether there is a reason to look.
const TICK: Duration = Duration::from_millis(500);
/// When what the broker refused is asked for again, at the latest.
const AGAIN: Duration = Duration::from_secs(5);

/// The duty; see the module.
pub struct Topology {
    deps: Deps,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// When the server made the work stream, as of the last look.
    created: Option<String>,
    connects: u64,
    looked: Option<Instant>,
}

pub(super) async fn work(deps: Deps, stop: CancellationToken) {
    let topology = Topology::new(deps);
    repeat("looking after streams and consumers", TICK, &stop, || async {
        if topology.has_reason() { topology.run_once().await } else { Ok(()) }
    })
    .await;
}

/// Hears of lanes that came into use elsewhere. What gets lost is seen at the next look, which follows each loss of the connection.
pub(super) async fn note_lanes(deps: Deps, stop: CancellationToken) {
    let Ok(mut signals) = deps.broker.lane_signals().await else { return };
    while let Some(Some(signal)) = stop.run_until_cancelled(signals.next()).await {
        deps.broker.note_lane(&signal.payload);
    }
}

impl Topology {
    pub fn new(deps: Deps) -> Self {
        Self { deps, seen: Mutex::default() }
    }

    /// Makes and mends everything. After the work stream was lost, all that is due and was in it is put back into the
    /// outbox. What the broker refuses is noted by it, and holds up nothing else.
    ///
    /// # Errors
    /// The broker or the database is away; the next call goes on.
    pub async fn run_once(&self) -> Result<(), Error> {
        let broker = &self.deps.broker;
        let (connects, refused) = (broker.connects(), refused(broker));
        let looked = match broker.ensure_work_stream().await? {
            Some(work) => self.look_at_lanes(work).await,
            None => Ok(()),
        };
        broker.ensure_other_streams().await?;
        if refused.into_iter().any(|stream| !broker.is_refused(stream)) {
            self.deps.relay.notify_one();
        }
        looked?;
        let mut seen = self.lock();
        (seen.connects, seen.looked) = (connects, Some(Instant::now()));
        Ok(())
    }

    async fn look_at_lanes(&self, work: WorkStream) -> Result<(), Error> {
        let broker = &self.deps.broker;
        let is_new = self.lock().created.as_ref().is_some_and(|created| *created != work.created);
        if is_new {
            tracing::warn!("the stream of wake-ups was made anew: publishing again what is due and lost with it");
            broker.note_new_incarnation();
        }
        broker.look_for_lanes().await?;
        // To the end: a consumer without a leader answers nothing for a while, and must hold up no other type.
        let types = self.deps.types.now();
        let made: Vec<_> = types.iter().map(|known| broker.ensure_consumers(known.name())).collect();
        let made: Vec<Result<(), _>> = stream::iter(made).buffer_unordered(AT_ONCE).collect().await;
        if is_new {
            wake_ups::rearm_lost(&self.deps, Duration::ZERO).await?;
        }
        self.lock().created = Some(work.created);
        Ok(made.into_iter().collect::<Result<(), _>>()?)
    }

    fn has_reason(&self) -> bool {
        let broker = &self.deps.broker;
        if !broker.is_connected() {
            return false;
        }
        let mut period = self.deps.config.background.sweep;
        if broker.has_findings() {
            period = period.min(AGAIN);
        }
        let seen = self.lock();
        let overdue = seen.looked.is_none_or(|at| at.elapsed() > period);
        overdue || seen.connects != broker.connects() || broker.take_suspicion()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(broker: &Broker) -> Vec<Stream> {
    Stream::ALL.into_iter().filter(|stream| broker.is_refused(*stream)).collect()
}
