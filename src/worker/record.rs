//! The end of a run: recorded, told, and its message answered, in this order.

use std::time::Duration;

use super::{
    Shared,
    eager::Won,
    running::{InHand, Run},
};
use crate::{
    faults::crash_point,
    job::{End, Status, Verdict},
    ops::news::{About, News},
    store::{
        claim::Claimed,
        finish::{Recorded, Settlement, WakeUp},
    },
};

/// Pauses before an outcome is tried again that the database has refused: half a minute in all.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(16);

/// Records how a run has ended, tells it, and answers its message.
///
/// `end`: of a run that a program outside has done.
pub(super) async fn record(
    shared: &Shared,
    run: &Run,
    job: &Claimed,
    verdict: Verdict,
    wake_up: WakeUp,
    end: Option<End>,
) {
    let broker = &shared.deps.broker;
    let told = News::of(&verdict);
    let delay = match &verdict {
        Verdict::Retry { delay, .. } | Verdict::HandBack { delay } => *delay,
        Verdict::Complete { .. } | Verdict::DeadLetter { .. } | Verdict::Cancel => Duration::ZERO,
    };
    let settlement = Settlement { id: job.id, run: job.run, verdict, wake_up, end };
    let recorded = submit(shared, run, settlement).await;
    if recorded.is_some() {
        run.settle();
    }
    crash_point("after_finish_commit");
    run.let_go();
    match recorded {
        Some(Recorded::As(status)) => {
            told.tell(broker, &subject_of(shared, job), status).await;
            let in_outbox = status == Status::Pending && wake_up == WakeUp::Outbox;
            if status == Status::Failed || in_outbox {
                shared.deps.relay.notify_one();
            }
            if status == Status::Pending && wake_up == WakeUp::NotNeeded {
                run.nak(broker, delay).await;
            } else {
                run.ack(broker).await;
            }
        }
        // Somebody else holds the job and its message: neither ack nor nak is ours to give.
        Some(Recorded::LeaseLost) => {
            tracing::warn!(job.id = %job.id, job.run = job.run, "lost the lease of job {}; its outcome was dropped", job.id);
        }
        // Held by the database's account, and by nobody here from now on: it is looked after as such.
        None => {}
    }
}

/// Tries again for a while what the database refuses, beside the lane that serves everybody: a right that is missing by
/// mistake should cost no result. `None`: it is given up.
async fn submit(shared: &Shared, run: &Run, mut settlement: Settlement) -> Option<Recorded> {
    let mut pause = FIRST;
    loop {
        match shared.outcomes.submit(settlement).await {
            Ok(Ok(recorded)) => return Some(recorded),
            Ok(Err(refused)) if pause <= LONGEST => settlement = *refused,
            Ok(Err(_)) | Err(_) => return None,
        }
        // Boxed: hardly any run waits here.
        let stopped = Box::pin(tokio::time::timeout(pause, run.token.cancelled())).await;
        if stopped.is_ok() {
            return None;
        }
        pause *= 2;
    }
}

impl Won {
    /// Sends it back, since it can't start here. Its attempt is not spent.
    pub async fn hand_back(self) {
        let Self { in_hand: InHand { run, shared, .. }, job } = &self;
        record(shared, run, job, Verdict::HandBack { delay: Duration::ZERO }, WakeUp::Outbox, None).await;
    }
}

fn subject_of<'a>(shared: &'a Shared, job: &'a Claimed) -> About<'a> {
    About { id: job.id, job_type: &job.r#type, attempt: job.attempt as u16, worker_id: &shared.id }
}
