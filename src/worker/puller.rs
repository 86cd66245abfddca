//! One task per type: asks each lane for as much as there are free slots, and starts what comes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Shared,
    eager::{Doorstep, Prompt},
    line::{Line, Source},
    run,
    slots::Slots,
    unanswered::Unanswered,
};
use crate::{
    broker::pull::{Delivery, LanePull},
    supervise::{self, Name},
    types::Known,
};

/// How long a message may wait here for a slot before another worker shall have it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the broker is asked how many messages are unanswered.
const LOOK: Duration = Duration::from_secs(2);

pub(crate) struct Puller {
    shared: Arc<Shared>,
    known: Arc<Known>,
    slots: Slots,
    unanswered: Arc<Unanswered>,
    lanes: [LanePull; 3],
    doorstep: Doorstep,
    waiting: Line<Prompt>,
    full_since: Option<Instant>,
    stop: CancellationToken,
}

impl Puller {
    /// # Errors
    /// The client is closed.
    pub async fn open(
        shared: Arc<Shared>,
        known: Arc<Known>,
        stop: CancellationToken,
    ) -> Result<Self, async_nats::SubscribeError> {
        let lanes = LanePull::open_all(&shared.deps.broker, known.name()).await?;
        Ok(Self {
            slots: Slots::new(known.settings.concurrency),
            unanswered: Arc::new(Unanswered::new(shared.deps.config.background.max_unanswered)),
            doorstep: shared.deps.eager.doorstep(Arc::downgrade(&shared), &known.handler.job_type),
            known,
            lanes,
            waiting: Line::new(),
            full_since: None,
            stop,
            shared,
        })
    }

    pub async fn work(mut self) {
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        let _looks = self.begin_looks();
        let mut types = self.shared.deps.types.changes();
        let mut lanes = self.shared.deps.broker.lanes_in_use();
        let mut is_paused = false;
        types.mark_changed();
        loop {
            self.take_won(is_paused);
            self.start_waiting();
            if !is_paused {
                self.ask().await;
            }
            self.doorstep.allow(if is_paused { 0 } else { self.room_for_new() });
            let [high, normal, low] = &mut self.lanes;
            tokio::select! {
                biased;
                _ = self.stop.cancelled() => break,
                Some(delivery) = high.next() => self.take_in(0, delivery),
                Some(delivery) = normal.next() => self.take_in(1, delivery),
                Some(delivery) = low.next() => self.take_in(2, delivery),
                _ = self.doorstep.rung() => {}
                _ = self.slots.changed() => {}
                Ok(()) = lanes.changed() => {}
                Ok(()) = types.changed() => {
                    let was_paused = is_paused;
                    is_paused = types.borrow_and_update().paused.contains(self.known.name());
                    if is_paused && !was_paused && self.withdraw().await.is_err() {
                        break;
                    }
                }
                _ = tick.tick() => {
                    self.lanes.iter_mut().for_each(LanePull::tick);
                    if self.must_withdraw() && self.withdraw().await.is_err() {
                        break;
                    }
                    self.hand_on().await;
                }
            }
        }
        self.give_back().await;
    }

    /// Looks at what the broker waits for, as long as this puller works.
    fn begin_looks(&self) -> DropGuard {
        let over = self.stop.child_token();
        let (shared, known, unanswered) = (self.shared.clone(), self.known.clone(), self.unanswered.clone());
        shared.clone().pullers.keep_until(Name::of("unanswered", known.name()), &over, move || {
            looks(shared.clone(), known.clone(), unanswered.clone())
        });
        over.drop_guard()
    }

    fn take_in(&mut self, lane: usize, delivery: Option<Delivery>) {
        if let Some(delivery) = delivery {
            self.waiting.push(lane, Source::Broker, Prompt::Message(delivery));
        }
    }

    fn take_won(&mut self, is_paused: bool) {
        for won in self.doorstep.take() {
            if is_paused {
                won.go_back();
            } else {
                self.waiting.push(won.lane() as usize, Source::Here, Prompt::Won(won));
            }
        }
        for (lane, published) in self.lanes.iter_mut().zip(self.doorstep.published()) {
            lane.note_published(published);
        }
    }

    /// How many jobs that are asked for here may start here at once, or nearly so: none while others wait, which were there before.
    fn room_for_new(&self) -> usize {
        if !self.shared.deps.config.worker.eager || self.waiting.has_messages() {
            return 0;
        }
        let on_the_way: Option<usize> = self.lanes.iter().map(LanePull::on_the_way).sum();
        let room = (self.slots.room() + self.slots.line()).min(self.known.handler.room());
        on_the_way.map_or(0, |expected| room.saturating_sub(expected + self.waiting.len()))
    }

    /// Whether messages are asked for that would find no room for long: jobs that were asked for here took it.
    fn must_withdraw(&self) -> bool {
        let asked = self.lanes.iter().any(|lane| lane.credit() > 0);
        asked && self.slots.room() == 0 && self.slots.line() == 0 && self.waiting.is_empty()
    }

    fn start_waiting(&mut self) {
        while !self.waiting.is_empty() {
            let Some(place) = self.slots.try_take() else {
                self.full_since.get_or_insert_with(Instant::now);
                return;
            };
            self.full_since = None;
            let Some(prompt) = self.waiting.pick() else { return };
            // Not on the tracker of the batchers: that is waited for after the last run has ended. Boxed, since tokio
            // copies a task's future at every change of its state.
            let (shared, known, unanswered) = (self.shared.clone(), self.known.clone(), self.unanswered.clone());
            supervise::spawn("run", Box::pin(run::carry_out(shared, known, unanswered, prompt, place)));
        }
        self.full_since = None;
    }

    async fn ask(&mut self) {
        let (free, worth) = (self.slots.room().min(self.known.handler.room()), self.slots.worth_asking());
        let batch = self.shared.deps.config.worker.batch;
        for (place, lane) in self.lanes.iter_mut().enumerate() {
            // What waits here in a lower lane must not get the next slot while something higher waits at the broker.
            let ahead = usize::from(self.waiting.has_lower_than(place));
            let missing = free.max(ahead).saturating_sub(lane.credit() + self.waiting.messages_of(place));
            if missing > 0 && (lane.credit() == 0 || missing >= worth) {
                lane.request(missing.min(batch)).await;
            }
        }
    }

    /// A paused type: each message that came would be looked up, only to be put off.
    async fn withdraw(&mut self) -> Result<(), async_nats::SubscribeError> {
        for lane in &mut self.lanes {
            lane.withdraw().await?;
        }
        self.give_back_waiting().await;
        Ok(())
    }

    /// Lets other workers have what can't be started here.
    async fn hand_on(&mut self) {
        if self.full_since.is_some_and(|since| since.elapsed() > PATIENCE) {
            self.full_since = None;
            self.give_back_waiting().await;
        }
    }

    /// At the end: what waits, and what is still on its way, goes back at once.
    async fn give_back(&mut self) {
        self.give_back_waiting().await;
        self.doorstep.close();
        let on_its_way = self.lanes.iter().any(|lane| lane.credit() > 0);
        if on_its_way {
            let rest = async {
                for lane in &mut self.lanes {
                    while let Ok(Some(delivery)) = tokio::time::timeout(Duration::from_millis(20), lane.next()).await {
                        let Some(delivery) = delivery else { continue };
                        delivery.split().1.nak(&self.shared.deps.broker, Duration::ZERO).await;
                    }
                }
            };
            let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
        }
    }

    async fn give_back_waiting(&mut self) {
        for prompt in self.waiting.clear() {
            match prompt {
                Prompt::Message(delivery) => delivery.split().1.nak(&self.shared.deps.broker, Duration::ZERO).await,
                Prompt::Won(won) => won.go_back(),
            }
        }
    }
}

/// Asks the broker now and then how much it waits for.
async fn looks(shared: Arc<Shared>, known: Arc<Known>, unanswered: Arc<Unanswered>) {
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tick.tick().await;
        unanswered.look(&shared.deps.broker, known.name()).await;
    }
}
