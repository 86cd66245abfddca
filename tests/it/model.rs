//! The rules of `job::state` and the SQL that carries them out, side by side: after every move both must say the same.

use std::time::Duration;

use proptest::{prelude::*, test_runner::TestRunner};
use queue_service::{
    job::{
        End, Failure, JobType, Outcome, Priority, RetryPolicy, Status, Verdict, settle,
        state::{Event, Refusal, State, step},
    },
    store::{
        Store,
        cancel::Cancel,
        claim::{Claim, Refused},
        enqueue::{Batch, Due, NewJob, Start},
        finish::{Recorded, Retried, Settlement, WakeUp},
        workers::heartbeat,
    },
};
use serde_json::value::RawValue;
use sqlx::PgPool;
use uuid::Uuid;

use crate::harness::Place;

const HOUR: Duration = Duration::from_secs(3600);

/// What two workers, a sweeper, an operator and the time may do. `late`: by the holder of the run before. `start`: as the
/// first run of this worker.
#[derive(Clone, Copy, Debug)]
enum Move {
    Claim { worker: usize },
    Die { worker: usize },
    Sweep,
    Succeed { late: bool, outside: bool },
    Fail { late: bool, permanent: bool, delayed: bool },
    HandBack { late: bool },
    Stopped { late: bool },
    Cancel,
    RetryByHand,
    EnqueueAgain { start: Option<usize> },
    TimePasses,
}

fn start() -> impl Strategy<Value = Option<usize>> {
    prop::option::of(0..2_usize)
}

fn moves() -> impl Strategy<Value = Move> {
    let late = || prop::bool::weighted(0.2);
    prop_oneof![
        6 => (0..2_usize).prop_map(|worker| Move::Claim { worker }),
        2 => (0..2_usize).prop_map(|worker| Move::Die { worker }),
        2 => Just(Move::Sweep),
        1 => (late(), any::<bool>()).prop_map(|(late, outside)| Move::Succeed { late, outside }),
        4 => (late(), prop::bool::weighted(0.2), any::<bool>())
            .prop_map(|(late, permanent, delayed)| Move::Fail { late, permanent, delayed }),
        2 => late().prop_map(|late| Move::HandBack { late }),
        2 => late().prop_map(|late| Move::Stopped { late }),
        2 => Just(Move::Cancel),
        2 => Just(Move::RetryByHand),
        1 => start().prop_map(|start| Move::EnqueueAgain { start }),
        3 => Just(Move::TimePasses),
    ]
}

/// The model: what the rules say, and what they leave to others (leases, time, history).
struct Model {
    state: State,
    holder: Option<usize>,
    alive: [bool; 2],
    due: bool,
    errors: i32,
    letters: i64,
}

impl Model {
    fn step(&mut self, event: Event) -> Result<(), Refusal> {
        let before = self.state;
        self.state = step(self.state, event)?;
        if self.state.status == Status::Failed && before.status != Status::Failed {
            self.letters += 1;
        }
        if matches!(event, Event::Fail { .. } | Event::TakeOver { .. }) {
            self.errors += 1;
        }
        Ok(())
    }

    fn held_by_dead(&self) -> bool {
        self.state.status == Status::Processing && self.holder.is_some_and(|holder| !self.alive[holder])
    }

    fn take_over(&mut self) {
        self.step(Event::TakeOver { lease_expired: true }).unwrap();
        self.due = true;
    }
}

/// The real one.
struct Real {
    store: Store,
    pool: PgPool,
    /// Of this case, so that cases do not know each other's.
    workers: [String; 2],
    job: NewJob,
}

impl Real {
    async fn beat(&self, worker: usize, lease: Duration) {
        let mut connection = self.pool.acquire().await.unwrap();
        heartbeat(&mut connection, &self.workers[worker], lease).await.unwrap();
    }

    /// Writes the job; `start`: as the first run of this worker.
    async fn enqueue(&self, start: Option<usize>) -> Batch {
        let start =
            start.map(|worker| Start { worker_id: &self.workers[worker], claim: Uuid::now_v7(), places: vec![true] });
        self.store.enqueue(std::slice::from_ref(&self.job), HOUR, start.as_ref()).await.unwrap()
    }

    async fn record(&self, run: i64, verdict: Verdict) -> Recorded {
        self.record_end(run, verdict, None).await
    }

    async fn record_end(&self, run: i64, verdict: Verdict, end: Option<End>) -> Recorded {
        let settlement = Settlement { id: self.job.id, run, verdict, wake_up: WakeUp::NotNeeded, end };
        self.store.finish(&[settlement], Retried::No).await.unwrap()[0]
    }
}

/// Makes one move in both and compares their answers.
async fn make(real: &Real, model: &mut Model, next: Move) {
    let id = real.job.id;
    let run_of = |late: bool| if late { model.state.run - 1 } else { model.state.run };
    match next {
        Move::Claim { worker } => {
            real.beat(worker, HOUR).await;
            model.alive[worker] = true;
            let held_by_dead = model.held_by_dead();
            let mut round = real.store.claim(&[(id, "probe".into())], &real.workers[worker]).await.unwrap();
            assert_eq!(round.freed.len(), usize::from(held_by_dead));
            if let Claim::Refused(Refused::Suspect) = round.claims[0] {
                let alone = real.store.claim_alone((id, "probe".into()), &real.workers[worker]).await.unwrap();
                assert_eq!(alone.freed, []);
                round.claims = alone.claims;
            }
            if let Some(freed) = round.freed.pop() {
                model.take_over();
                assert_eq!((freed.attempt, freed.status), (model.state.attempt, model.state.status));
            }
            match (model.step(Event::Claim { due: model.due }), round.claims.remove(0)) {
                (Ok(()), Claim::Won(job)) => {
                    assert_eq!((job.run, job.attempt), (model.state.run, model.state.attempt as i16));
                    model.holder = Some(worker);
                }
                (Err(Refusal::NotDue), Claim::Refused(Refused::NotDue(_))) => {}
                (Err(Refusal::HeldByOther), Claim::Refused(Refused::Held)) => {}
                (Err(Refusal::AlreadyFinished), Claim::Refused(Refused::Over)) => {}
                (said, answer) => panic!("the rules say {said:?}, the store {answer:?}"),
            }
        }
        Move::Die { worker } => {
            real.beat(worker, Duration::ZERO).await;
            model.alive[worker] = false;
        }
        Move::Sweep => {
            let freed = real.store.release_lost(&[id], WakeUp::Outbox).await.unwrap();
            assert_eq!(freed.len(), usize::from(model.held_by_dead()));
            for freed in freed {
                model.take_over();
                assert_eq!((freed.attempt, freed.status), (model.state.attempt, model.state.status));
            }
        }
        Move::Succeed { late, outside } => {
            let run = run_of(late);
            let result = RawValue::from_string("1".into()).unwrap();
            let end = outside.then(|| End::result(&result).in_time());
            let recorded = real.record_end(run, Verdict::Complete { result }, end).await;
            agree(model, Event::Succeed { run, outside }, recorded);
        }
        Move::Fail { late, permanent, delayed } => {
            let run = run_of(late);
            let failure = if permanent { Failure::permanent("no") } else { Failure::retry("no") };
            let delay = if delayed { HOUR } else { Duration::ZERO };
            let policy = RetryPolicy { schedule: vec![delay], ..RetryPolicy::default() };
            let State { attempt, max_attempts, .. } = model.state;
            let recorded =
                real.record(run, settle(attempt, max_attempts, &policy, Outcome::Failed(failure), 0.5)).await;
            agree(model, Event::Fail { run, retry: !permanent }, recorded);
            if recorded == Recorded::As(Status::Pending) {
                model.due = !delayed;
            }
        }
        Move::HandBack { late } => {
            let run = run_of(late);
            let recorded = real.record(run, Verdict::HandBack { delay: Duration::ZERO }).await;
            agree(model, Event::HandBack { run }, recorded);
        }
        Move::Stopped { late } => {
            let run = run_of(late);
            let recorded = real.record(run, Verdict::Cancel).await;
            agree(model, Event::Stopped { run }, recorded);
        }
        Move::Cancel => {
            let answer = real.store.cancel(id, Some("why"), None).await.unwrap();
            let expected = match (model.step(Event::Cancel), model.state.status) {
                (Ok(()), Status::Cancelled) => Cancel::Ended,
                (Ok(()), _) => Cancel::Asked,
                (Err(_), _) => Cancel::NotLive,
            };
            assert_eq!(answer, expected);
        }
        Move::RetryByHand => {
            let done = real.store.retry(id, None, HOUR).await.unwrap().is_some();
            assert_eq!(model.step(Event::RetryByHand).is_ok(), done);
            model.due |= done;
        }
        Move::EnqueueAgain { start } => {
            // As after an answer that got lost. A finished job's id is not looked for; its caller was answered long ago.
            if !model.state.status.is_final() {
                real.enqueue(start).await;
            }
        }
        Move::TimePasses => {
            let pass = "UPDATE jobs SET run_at = least(run_at, now()) WHERE id = $1";
            sqlx::query(pass).bind(id).execute(&real.pool).await.unwrap();
            model.due = true;
        }
    }
    compare(real, model).await;
}

fn agree(model: &mut Model, event: Event, recorded: Recorded) {
    match (model.step(event), recorded) {
        (Ok(()), Recorded::As(status)) => assert_eq!(status, model.state.status),
        (Err(Refusal::LeaseLost), Recorded::LeaseLost) => {}
        (said, recorded) => panic!("the rules say {said:?}, the store {recorded:?}"),
    }
}

/// The row is in one table alone, and is what the rules say.
async fn compare(real: &Real, model: &Model) {
    let both = "SELECT status, attempt, run, cancel_requested_at IS NOT NULL, coalesce(json_array_length(errors), 0)
                FROM jobs WHERE id = $1 UNION ALL
                SELECT status, attempt, run, NULL, coalesce(json_array_length(errors), 0)
                FROM finished_jobs WHERE id = $1";
    let rows: Vec<(String, i16, i64, Option<bool>, i32)> =
        sqlx::query_as(both).bind(real.job.id).fetch_all(&real.pool).await.unwrap();
    let State { status, attempt, run, cancel_requested, .. } = model.state;
    let asked = (!status.is_final()).then_some(cancel_requested);
    assert_eq!(rows, [(status.to_string(), attempt as i16, run, asked, model.errors.min(100))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_makes_the_moves_that_the_rules_allow_and_no_others() {
    let place = Place::new().await;
    let (store, pool) = (place.store().await, place.database().await);
    let runtime = tokio::runtime::Handle::current();
    let letters = std::cell::Cell::new(0);
    let case = async |max_attempts: u16, first: Option<usize>, moves: Vec<Move>| {
        let job = NewJob {
            id: Uuid::now_v7(),
            job_type: JobType::new("probe").unwrap(),
            payload: RawValue::from_string("{}".into()).unwrap(),
            priority: Priority::default(),
            max_attempts,
            timeout: None,
            due: Due::Now,
            tags: Vec::new(),
            key: None,
            trace: None,
        };
        let workers = [0, 1].map(|n| format!("worker-{n}-of-{}", job.id));
        let real = Real { store: store.clone(), pool: pool.clone(), workers, job };
        let state = State { status: Status::Pending, attempt: 0, max_attempts, run: 0, cancel_requested: false };
        let mut model = Model { state, holder: None, alive: [false; 2], due: true, errors: 0, letters: 0 };
        let batch = real.enqueue(first).await;
        assert_eq!((batch.due.len(), batch.started.len()), if first.is_some() { (0, 1) } else { (1, 0) });
        if let Some(worker) = first {
            real.beat(worker, HOUR).await;
            model.alive[worker] = true;
            model.step(Event::Claim { due: true }).unwrap();
            model.holder = Some(worker);
        }
        compare(&real, &model).await;
        for next in moves {
            make(&real, &mut model, next).await;
        }
        letters.set(letters.get() + model.letters);
    };
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    let sequences = (1..4_u16, start(), prop::collection::vec(moves(), 1..40));
    tokio::task::block_in_place(|| {
        let run = TestRunner::new(config).run(&sequences, |(max_attempts, first, moves)| {
            runtime.block_on(case(max_attempts, first, moves));
            Ok(())
        });
        run.unwrap_or_else(|e| panic!("{e}"));
    });

    let dead = "SELECT coalesce(sum(cardinality(job_ids)), 0)::int8 FROM outbox WHERE kind = 'dead-letter'";
    let dead: i64 = sqlx::query_scalar(dead).fetch_one(&pool).await.unwrap();
    assert_eq!(dead, letters.get(), "one dead letter per failure");
    let full = "SELECT type, status, count(*) FROM all_jobs GROUP BY type, status ORDER BY type, status";
    let full: Vec<(String, String, i64)> = sqlx::query_as(full).fetch_all(&pool).await.unwrap();
    let counts = store.counts().await.unwrap().into_iter().map(|(name, status, n)| (name, status.to_string(), n));
    assert_eq!(counts.collect::<Vec<_>>(), full, "the counts add up");
    store.close().await;
}
