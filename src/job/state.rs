//! The state machine: every move a job can make, and the guard of each.
//!
//! `store` carries the same moves out in SQL, with the same guards in its WHERE clauses. This is the specification that
//! the model test compares the database with.

use super::Status;

/// What the rules need to know of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    pub status: Status,
    /// Attempts spent since the job was made or last retried by hand. Starts at 0; counted at claim, not at failure,
    /// so that a worker that dies in the middle has spent its attempt.
    pub attempt: u16,
    pub max_attempts: u16,
    /// The fencing token: one higher at each claim, never reset, so that an old holder's write is known as such.
    pub run: i64,
    /// Somebody wants the running job stopped.
    pub cancel_requested: bool,
}

/// What can happen to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A worker asks for it. `due`: its `run_at` has come, by the database's clock.
    Claim {
        due: bool,
    },
    /// The holder's lease is found expired, or not.
    TakeOver {
        lease_expired: bool,
    },
    /// `outside`: by a program that the service only hears of.
    Succeed {
        run: i64,
        outside: bool,
    },
    /// `retry`: the verdict of `settle` was to try again.
    Fail {
        run: i64,
        retry: bool,
    },
    HandBack {
        run: i64,
    },
    /// The holder obeyed a cancellation, or was forced to.
    Stopped {
        run: i64,
    },
    Cancel,
    RetryByHand,
}

/// Why a move is not made. The job stays as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotDue,
    /// A write that carries another run than the current one.
    LeaseLost,
    HeldByOther,
    AlreadyFinished,
    NotRetryable,
}

/// Makes one move.
pub fn step(state: State, event: Event) -> Result<State, Refusal> {
    use Status::*;
    let held = |run: i64| state.status == Processing && state.run == run;
    match event {
        Event::Claim { due } => match state.status {
            Pending if due => Ok(State { status: Processing, attempt: state.attempt + 1, run: state.run + 1, ..state }),
            Pending => Err(Refusal::NotDue),
            Processing => Err(Refusal::HeldByOther),
            Completed | Failed | Cancelled => Err(Refusal::AlreadyFinished),
        },
        // The lost run has spent its attempt; what follows is as after a failure, without a delay.
        Event::TakeOver { lease_expired } => match state.status {
            Processing if lease_expired => Ok(after_failure(state, true)),
            Processing => Err(Refusal::HeldByOther),
            Pending => Err(Refusal::NotDue),
            Completed | Failed | Cancelled => Err(Refusal::AlreadyFinished),
        },
        // Of a run outside nothing is wanted any more once its job is cancelled, and it is told so.
        Event::Succeed { run, outside: true } if held(run) && state.cancel_requested => {
            Ok(State { status: Cancelled, ..state })
        }
        Event::Succeed { run, .. } if held(run) => Ok(State { status: Completed, ..state }),
        Event::Fail { run, retry } if held(run) => Ok(after_failure(state, retry)),
        // The attempt is given back, the run is not: a late write of the interrupted run must stay recognisable. A run
        // that stopped though nobody had asked for it (a late signal) was interrupted, too.
        Event::HandBack { run } | Event::Stopped { run } if held(run) => match state.cancel_requested {
            true => Ok(State { status: Cancelled, ..state }),
            false => Ok(State { status: Pending, attempt: state.attempt - 1, ..state }),
        },
        Event::Succeed { .. } | Event::Fail { .. } | Event::HandBack { .. } | Event::Stopped { .. } => {
            Err(Refusal::LeaseLost)
        }
        Event::Cancel => match state.status {
            Pending => Ok(State { status: Cancelled, ..state }),
            Processing => Ok(State { cancel_requested: true, ..state }),
            Completed | Failed | Cancelled => Err(Refusal::AlreadyFinished),
        },
        Event::RetryByHand => match state.status {
            Failed | Cancelled => Ok(State { status: Pending, attempt: 0, cancel_requested: false, ..state }),
            Pending | Processing | Completed => Err(Refusal::NotRetryable),
        },
    }
}

fn after_failure(state: State, retry: bool) -> State {
    let status = match () {
        // A cancelled job whose last run fails is cancelled: nobody wants it any more.
        () if state.cancel_requested => Status::Cancelled,
        () if retry && state.attempt < state.max_attempts => Status::Pending,
        () => Status::Failed,
    };
    State { status, ..state }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRESH: State =
        State { status: Status::Pending, attempt: 0, max_attempts: 3, run: 0, cancel_requested: false };

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            any::<bool>().prop_map(|due| Event::Claim { due }),
            any::<bool>().prop_map(|lease_expired| Event::TakeOver { lease_expired }),
            (0..6i64, any::<bool>()).prop_map(|(run, outside)| Event::Succeed { run, outside }),
            (0..6i64, any::<bool>()).prop_map(|(run, retry)| Event::Fail { run, retry }),
            (0..6i64).prop_map(|run| Event::HandBack { run }),
            (0..6i64).prop_map(|run| Event::Stopped { run }),
            Just(Event::Cancel),
            Just(Event::RetryByHand),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_attempts_stay_in_budget_and_runs_only_grow(
            max_attempts in 1u16..5, events in prop::collection::vec(event(), 0..60),
        ) {
            let mut state = State { max_attempts, ..FRESH };
            for event in events {
                let Ok(next) = step(state, event) else { continue };
                prop_assert!(next.attempt <= next.max_attempts);
                prop_assert!(next.run >= state.run);
                if state.status.is_final() {
                    prop_assert_eq!(event, Event::RetryByHand);
                }
                prop_assert!(state.status != Status::Completed, "completed is for ever");
                state = next;
            }
        }

        #[test]
        fn an_old_run_changes_nothing(run in 0i64..3) {
            let mut state = FRESH;
            for _ in 0..3 {
                state = step(state, Event::Claim { due: true }).unwrap();
                if state.run < 3 {
                    state = step(state, Event::HandBack { run: state.run }).unwrap();
                }
            }
            for event in [Event::Succeed { run, outside: false }, Event::Fail { run, retry: true }, Event::Stopped { run }] {
                prop_assert_eq!(step(state, event), Err(Refusal::LeaseLost));
            }
        }
    }

    #[test]
    fn a_cancelled_run_that_fails_is_cancelled_and_one_that_succeeds_is_completed_unless_it_is_outside() {
        let running = step(FRESH, Event::Claim { due: true }).unwrap();
        let asked = step(running, Event::Cancel).unwrap();
        assert_eq!(step(asked, Event::Fail { run: 1, retry: true }).unwrap().status, Status::Cancelled);
        assert_eq!(step(asked, Event::Succeed { run: 1, outside: false }).unwrap().status, Status::Completed);
        assert_eq!(step(asked, Event::Succeed { run: 1, outside: true }).unwrap().status, Status::Cancelled);
        assert_eq!(step(running, Event::Succeed { run: 1, outside: true }).unwrap().status, Status::Completed);
    }
}
