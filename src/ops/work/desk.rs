//! Where programs wait for work: one tray per type and process, however many of them wait.
//!
//! Wake-ups come from the same consumers as for the service's own workers, and are asked for only while somebody waits. A
//! job is claimed for the one who has waited longest, and its message acknowledged: from then on the row and its lease
//! count, and should that end, the sweep finds the job.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use tokio::{
    sync::{Notify, mpsc, mpsc::error::TrySendError},
    time::{Instant, timeout_at},
};

use crate::{
    broker::{
        Broker,
        events::{Event, EventState},
        pull::{AckHandle, Delivery, LanePull},
    },
    flow::Unanswered,
    job::{Trace, Work, model::JobId},
    ops::{Ops, error::ApiError, lost},
    store::{
        Store,
        claim::{Claim, Claimed, Lease},
    },
    supervise::{Name, Tasks},
    types::Types,
    worker::run::put_off,
};

/// A first job is waited for; others that come within this time go along.
const GATHER: Duration = Duration::from_millis(3);
/// How often a tray forgets requests that the broker can't answer any more, and looks for leases that are over.
const TICK: Duration = Duration::from_millis(500);

/// What a program that waits wants.
pub(crate) struct Wish {
    pub types: Vec<String>,
    pub max: usize,
    pub wait: Duration,
    pub worker_id: String,
    pub lease: Duration,
}

/// A run that is somebody's now.
pub(crate) struct Fetched {
    pub id: JobId,
    pub run: i64,
    pub checkpoint: Option<Box<RawValue>>,
    pub deadline: DateTime<Utc>,
    /// The same as this process measures it: at this time at the latest.
    pub ends: Instant,
    pub trace: Trace,
}

/// All trays of this process.
pub(crate) struct Desk {
    supplies: Supplies,
    trays: Mutex<HashMap<String, mpsc::Sender<Hand>>>,
    tasks: Tasks,
}

/// What a tray works with.
#[derive(Clone)]
struct Supplies {
    store: Store,
    broker: Broker,
    relay: Arc<Notify>,
    types: Types,
    cancel_grace: Duration,
}

/// An open hand: takes as many deliveries as there is room in it.
type Hand = mpsc::Sender<Delivery>;

impl Desk {
    pub fn new(
        store: Store,
        broker: Broker,
        relay: Arc<Notify>,
        types: Types,
        cancel_grace: Duration,
        tasks: &Tasks,
    ) -> Self {
        let supplies = Supplies { store, broker, relay, types, cancel_grace };
        Self { supplies, trays: Mutex::default(), tasks: tasks.clone() }
    }

    /// Waits for work and claims it. Empty: there was none in time.
    ///
    /// # Errors
    /// The database or the service can't go on.
    pub async fn fetch(&self, ops: &Ops, wish: Wish) -> Result<Vec<Fetched>, ApiError> {
        let end = Instant::now() + wish.wait.max(GATHER * 10);
        loop {
            let deliveries = self.wait(&wish, end).await?;
            if deliveries.is_empty() {
                return Ok(Vec::new());
            }
            let claimed = self.claim(ops, &wish, deliveries).await?;
            if claimed.is_empty() {
                // As whoever asks now is told, should a type be fetched no more.
                ops.check_fetched(&wish.types)?;
            }
            if !claimed.is_empty() || Instant::now() >= end {
                return Ok(claimed);
            }
        }
    }

    async fn wait(&self, wish: &Wish, end: Instant) -> Result<Vec<Delivery>, ApiError> {
        let stopping = self.tasks.supervisor().stopping();
        if stopping.is_cancelled() {
            return Err(ApiError::stopping());
        }
        let (hand, mut taken) = mpsc::channel(wish.max);
        for name in &wish.types {
            self.tray(name).send(hand.clone()).await.map_err(|_| Unanswered::Stopping)?;
        }
        drop(hand);
        let first = stopping.run_until_cancelled(timeout_at(end, taken.recv())).await;
        let mut deliveries: Vec<Delivery> = first.and_then(Result::ok).flatten().into_iter().collect();
        if !deliveries.is_empty() {
            let gathered = Instant::now() + GATHER;
            while deliveries.len() < wish.max
                && let Ok(Some(delivery)) = timeout_at(gathered, taken.recv()).await
            {
                deliveries.push(delivery);
            }
        }
        // What was put into the hand by now is ours; nothing more can be.
        taken.close();
        while let Some(delivery) = taken.recv().await {
            deliveries.push(delivery);
        }
        if !stopping.is_cancelled() {
            return Ok(deliveries);
        }
        for delivery in deliveries {
            delivery.split().1.nak(&self.supplies.broker, Duration::ZERO).await;
        }
        Err(ApiError::stopping())
    }

    fn tray(&self, name: &str) -> mpsc::Sender<Hand> {
        let mut trays = self.trays.lock().unwrap_or_else(PoisonError::into_inner);
        let tray = trays.entry(name.to_owned()).or_insert_with(|| {
            let (hands, waiting) = mpsc::channel(1024);
            let (supplies, name) = (self.supplies.clone(), name.to_owned());
            let waiting = Arc::new(tokio::sync::Mutex::new(Waiting { new: waiting, hands: VecDeque::new() }));
            self.tasks.keep_until_done(Name::of("fetch", &name), move || {
                serve(supplies.clone(), name.clone(), waiting.clone())
            });
            hands
        });
        tray.clone()
    }

    async fn claim(&self, ops: &Ops, wish: &Wish, deliveries: Vec<Delivery>) -> Result<Vec<Fetched>, ApiError> {
        let Supplies { store, broker, relay, .. } = &self.supplies;
        let began = Instant::now();
        let mut by_type: HashMap<String, Vec<(JobId, AckHandle)>> = HashMap::new();
        for delivery in deliveries {
            match delivery.split() {
                (Ok(wake_up), ack) => by_type.entry(wake_up.job_type).or_default().push((wake_up.id, ack)),
                (Err(_), ack) => ack.term(broker, "not a wake-up").await,
            }
        }
        let mut all = Vec::new();
        let types = ops.types.now();
        for (name, messages) in by_type {
            let Some(known) = types.get(&name).filter(|known| known.handler.work == Work::Pull) else {
                // Its work is others' by now: theirs at once.
                for (_, ack) in &messages {
                    ack.nak(broker, Duration::ZERO).await;
                }
                continue;
            };
            let wanted: Vec<_> = messages.iter().map(|(id, _)| (*id, name.clone())).collect();
            let lease = Lease { lease: wish.lease, timeout: known.settings.timeout };
            let round = match store.claim_outside(&wanted, &wish.worker_id, lease).await {
                Ok(round) => round,
                Err(e) => {
                    for (_, ack) in &messages {
                        ack.nak(broker, Duration::from_secs(1)).await;
                    }
                    return Err(e.into());
                }
            };
            lost::tell(broker, relay, &round.freed).await;
            for ((id, ack), claim) in messages.iter().zip(round.claims) {
                match claim {
                    Claim::Won(job) => {
                        ack.ack(broker).await;
                        let timeout = job.timeout_ms.map(|ms| Duration::from_millis(ms.unsigned_abs()));
                        all.push((*job, began + timeout.unwrap_or(lease.timeout)));
                    }
                    Claim::Refused(refused) => put_off(broker, ack, *id, refused, wish.lease).await,
                }
            }
        }
        let events: Vec<Event> = all
            .iter()
            .map(|(job, _)| {
                Event::new(job.id, &job.r#type, EventState::Started, job.attempt as u16, Some(&wish.worker_id))
            })
            .collect();
        broker.emit(&events).await;
        Ok(all.into_iter().map(fetched).collect())
    }
}

fn fetched((job, ends): (Claimed, Instant)) -> Fetched {
    Fetched {
        ends,
        trace: job.trace(),
        id: job.id,
        run: job.run,
        checkpoint: job.checkpoint.map(|checkpoint| checkpoint.0),
        deadline: job.deadline.unwrap_or_default(),
    }
}

/// Who waits for jobs of one type, the longest first.
struct Waiting {
    new: mpsc::Receiver<Hand>,
    hands: VecDeque<Hand>,
}

/// Hands out what comes for one type, to whoever has waited longest.
async fn serve(supplies: Supplies, name: String, waiting: Arc<tokio::sync::Mutex<Waiting>>) {
    let mut waiting = waiting.lock().await;
    let Waiting { new, hands: waiting } = &mut *waiting;
    let broker = &supplies.broker;
    let Ok(mut lanes) = LanePull::open_all(broker, &name).await else { return };
    let mut in_use = broker.lanes_in_use();
    let mut tick = tokio::time::interval(TICK);
    loop {
        waiting.retain(|hand| !hand.is_closed());
        let wanted: usize = waiting.iter().map(mpsc::Sender::capacity).sum();
        for lane in &mut lanes {
            lane.request(wanted.min(500).saturating_sub(lane.credit())).await;
        }
        let [high, normal, low] = &mut lanes;
        tokio::select! {
            biased;
            hand = new.recv() => match hand {
                Some(hand) => waiting.push_back(hand),
                None => return,
            },
            Some(delivery) = high.next() => hand_out(broker, waiting, delivery).await,
            Some(delivery) = normal.next() => hand_out(broker, waiting, delivery).await,
            Some(delivery) = low.next() => hand_out(broker, waiting, delivery).await,
            Ok(()) = in_use.changed() => {}
            _ = tick.tick() => {
                lanes.iter_mut().for_each(LanePull::tick);
                if !waiting.is_empty() {
                    end_outside(&supplies).await;
                }
            }
        }
    }
}

async fn hand_out(broker: &Broker, waiting: &mut VecDeque<Hand>, delivery: Option<Delivery>) {
    let Some(mut delivery) = delivery else { return };
    while let Some(hand) = waiting.front() {
        delivery = match hand.try_send(delivery) {
            Ok(()) => return,
            Err(TrySendError::Full(back) | TrySendError::Closed(back)) => back,
        };
        waiting.pop_front();
    }
    // Nobody waits here any more; somebody may elsewhere.
    delivery.split().1.nak(broker, Duration::ZERO).await;
}

/// Leases that are over give work to those who wait, sooner than the sweep would see it.
async fn end_outside(supplies: &Supplies) {
    let Supplies { store, broker, relay, types, cancel_grace } = supplies;
    if let Err(e) = (lost::Ender { store, broker, relay, types }.end_all(*cancel_grace).await) {
        tracing::debug!("could not look for leases that are over: {e}");
    }
}
