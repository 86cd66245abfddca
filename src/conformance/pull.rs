//! The checks of a pull worker.

use std::time::Duration;

use serde_json::{json, value::RawValue};
use tokio::time::Instant;

use super::{
    FIRST, NEEDS_BAD, NEEDS_LARGE, NEEDS_SLOW, Options, RESULT_MAX,
    office::{Given, Office, Outcome},
    peer::short,
    program::{NOT_OURS, Program},
    report::{Report, Ruling, Sheet, failed, passed, skipped, warned},
    same::difference,
};
use crate::job::model::JobId;

/// Longest wait for the next fetch: that of the longest `waitMs`, and a bit.
const FETCH: Duration = Duration::from_secs(35);
/// Longest lease whose heartbeats are waited for.
const LEASE_MAX: Duration = Duration::from_secs(15);
/// How long a worker may take to hear of a cancellation and to obey.
const OBEY: Duration = Duration::from_secs(5);

pub(super) async fn examine(
    office: Office,
    options: &Options,
    mut program: Program,
    mut report: Sheet<'_>,
) -> anyhow::Result<Report> {
    let mut course = Course { office, options };
    let there = course.asks_for_work(&mut program).await;
    if !report.note("it asks for work", there) {
        return Ok(report.done());
    }
    report.note("a job is completed", course.a_job().await);
    report.note("a job that comes again is done again", course.again().await);
    report.note("what can't succeed is told as a failure for good", course.bad().await);
    report.note("no result is larger than 256 KiB", course.large().await);
    report.note("an outcome that gets no answer is told again", course.unanswered().await);
    report.note("an outcome that is refused with lease_lost is dropped", course.refused().await);
    report.note("it gives signs of life", course.alive().await);
    report.note("it stops when the job is cancelled", course.stopped("cancel").await);
    report.note("it drops a run that is lost", course.stopped("lost").await);
    report.note("after all that it still does its work", course.a_job().await);
    report.note("it gives back what it has in hand when it is told to end", course.end(&program).await);
    report.note("every request has the form of the protocol", course.form());
    report.note("it ends when it is told to", program.ended().await);
    Ok(report.done())
}

struct Course<'o> {
    office: Office,
    options: &'o Options,
}

fn soon(span: Duration) -> Instant {
    Instant::now() + span
}

impl Course<'_> {
    async fn asks_for_work(&mut self, program: &mut Program) -> Ruling {
        let Some(given) = self.give(&self.options.payload.clone(), FIRST).await else {
            if let Some(gone) = program.has_ended() {
                return failed(gone);
            }
            let fault = self.office.faults.first().map(|fault| format!("; a request was not understood: {fault}"));
            return failed(format!("no work.fetch came within {} s{}", FIRST.as_secs(), fault.unwrap_or_default()));
        };
        let outcome = self.office.outcome(given, soon(self.options.patience)).await;
        if let Some(outcome) = &outcome {
            self.office.accept(outcome).await;
        }
        passed(format!("as {}", self.office.worker.clone().unwrap_or_default()))
    }

    async fn a_job(&mut self) -> Ruling {
        match self.run(&self.options.payload.clone(), JobId::now_v7(), 1).await {
            Ok((given, outcome)) if outcome.verb == "complete" => {
                passed(format!("{} ms", given.at.elapsed().as_millis()))
            }
            Ok((_, outcome)) => failed(in_words(&outcome)),
            Err(ruling) => ruling,
        }
    }

    async fn again(&mut self) -> Ruling {
        let id = JobId::now_v7();
        let mut told = Vec::new();
        for run in [1, 2] {
            match self.run(&self.options.payload.clone(), id, run).await {
                Ok((_, outcome)) => told.push(outcome),
                Err(ruling) => return ruling,
            }
        }
        // All but the number of the run.
        let said = |outcome: &Outcome| json!([outcome.verb, outcome.body["result"], outcome.body["message"]]);
        match difference(&said(&told[0]), &said(&told[1])) {
            None => passed("with the same result"),
            Some(place) => {
                let place = place.strip_prefix("/1/").map(|place| format!(" at /{place}")).unwrap_or_default();
                let (first, second) = (in_words(&told[0]), in_words(&told[1]));
                warned(format!("with another result{place}: first {first}, then {second}"))
            }
        }
    }

    async fn bad(&mut self) -> Ruling {
        let Some(payload) = self.options.bad.clone() else {
            return skipped(NEEDS_BAD);
        };
        match self.run(&payload, JobId::now_v7(), 1).await {
            Ok((_, outcome)) if outcome.verb != "fail" => failed(in_words(&outcome)),
            Ok((_, outcome)) if outcome.body["retry"] == false => passed(in_words(&outcome)),
            Ok((_, outcome)) => {
                warned(format!("it would be tried again for want of \"retry\": false: {}", in_words(&outcome)))
            }
            Err(ruling) => ruling,
        }
    }

    async fn large(&mut self) -> Ruling {
        let Some(payload) = self.options.large.clone() else {
            return skipped(NEEDS_LARGE);
        };
        match self.run(&payload, JobId::now_v7(), 1).await {
            Ok((_, outcome)) if outcome.size > RESULT_MAX => failed(format!(
                "the result has {} bytes, which the service makes a permanent failure; store it elsewhere and answer with a link",
                outcome.size
            )),
            Ok((_, outcome)) => passed(in_words(&outcome)),
            Err(ruling) => ruling,
        }
    }

    async fn unanswered(&mut self) -> Ruling {
        let (given, first) = match self.outcome(&self.options.payload.clone(), JobId::now_v7(), 1).await {
            Ok(told) => told,
            Err(ruling) => return ruling,
        };
        // As if the answer got lost.
        match self.office.outcome(given, soon(self.options.patience.min(Duration::from_secs(15)))).await {
            Some(second) => {
                self.office.accept(&second).await;
                match (second.verb == first.verb, difference(&second.body, &first.body).is_none()) {
                    (true, true) => passed(""),
                    (true, false) => warned("with another content"),
                    (false, _) => failed(format!("first it was {}, then {}", in_words(&first), in_words(&second))),
                }
            }
            None => warned("it is not: the job would run again when its lease ends"),
        }
    }

    async fn refused(&mut self) -> Ruling {
        let (given, outcome) = match self.outcome(&self.options.payload.clone(), JobId::now_v7(), 1).await {
            Ok(told) => told,
            Err(ruling) => return ruling,
        };
        self.office.refuse(&outcome).await;
        match self.office.until_fetch(given, soon(FETCH)).await {
            (true, 0) => passed(""),
            (true, n) => warned(format!("after it was told {n} times more")),
            (false, 0) => failed("it does not ask for work any more"),
            (false, n) => failed(format!("it was told {n} times more, and no work is asked for")),
        }
    }

    async fn alive(&mut self) -> Ruling {
        let Some(slow) = self.options.slow.clone() else { return skipped(NEEDS_SLOW) };
        let Some(given) = self.give(&slow, FETCH).await else { return failed("it does not ask for work any more") };
        if given.lease > LEASE_MAX {
            self.drop_run(given).await;
            let max = LEASE_MAX.as_secs();
            return skipped(format!(
                "its lease is {} s; ask for {max} s at most to have it checked",
                given.lease.as_secs()
            ));
        }
        let beat = self.office.beat(given, given.at + given.lease).await;
        self.drop_run(given).await;
        match beat {
            Some(after) if after <= given.lease.mul_f64(0.6) => {
                passed(format!("after {:.1} s of a lease of {} s", after.as_secs_f64(), given.lease.as_secs()))
            }
            Some(after) => warned(format!("after {:.1} s: a third of the lease is right", after.as_secs_f64())),
            None => failed(format!("no heartbeat within its lease of {} s; was the job over?", given.lease.as_secs())),
        }
    }

    /// `state`: what its heartbeat is told.
    async fn stopped(&mut self, state: &'static str) -> Ruling {
        let Some(slow) = self.options.slow.clone() else { return skipped(NEEDS_SLOW) };
        let Some(given) = self.give(&slow, FETCH).await else { return failed("it does not ask for work any more") };
        if given.lease > LEASE_MAX {
            self.drop_run(given).await;
            return skipped("its lease is too long for it");
        }
        self.office.states.insert((given.id, given.run), state);
        if self.office.beat(given, given.at + given.lease).await.is_none() {
            return failed("no heartbeat came within its lease");
        }
        let told = Instant::now();
        if state == "lost" {
            // Nothing that it says is wanted any more; that it says something is no harm.
            return match self.office.until_fetch(given, soon(FETCH)).await {
                (true, 0) if told.elapsed() <= OBEY => passed(format!("after {} ms", told.elapsed().as_millis())),
                (true, 0) => warned(format!("after {} s: did it go on working?", told.elapsed().as_secs())),
                (true, _) => warned("it told an outcome all the same, which was refused"),
                (false, _) => failed("it does not ask for work any more"),
            };
        }
        match self.office.outcome(given, soon(OBEY)).await {
            Some(outcome) => {
                self.office.accept(&outcome).await;
                match outcome.verb.as_str() {
                    "complete" => warned("it was completed all the same"),
                    verb => passed(format!("by {verb}, after {} ms", told.elapsed().as_millis())),
                }
            }
            None => failed(format!("nothing is told of it within {} s", OBEY.as_secs())),
        }
    }

    async fn end(&mut self, program: &Program) -> Ruling {
        if !program.is_ours() {
            return skipped(NOT_OURS);
        }
        let payload = self.options.slow.clone().unwrap_or_else(|| self.options.payload.clone());
        let Some(given) = self.give(&payload, FETCH).await else { return failed("it does not ask for work any more") };
        // A worker that is told to end while the job is on its way to it has nothing in hand yet.
        let _ = self.office.beat(given, soon(Duration::from_secs(1))).await;
        program.terminate();
        match self.office.outcome(given, soon(Duration::from_secs(12))).await {
            Some(outcome) => {
                self.office.accept(&outcome).await;
                passed(in_words(&outcome))
            }
            None => failed("nothing is told of it: the attempt is spent when its lease ends; answer with work.release"),
        }
    }

    fn form(&self) -> Ruling {
        match self.office.faults.first() {
            None => passed(""),
            Some(fault) => failed(fault),
        }
    }

    /// Gives a job out, hears what becomes of it, and records that.
    async fn run(&mut self, payload: &RawValue, id: JobId, run: i64) -> Result<(Given, Outcome), Ruling> {
        let (given, outcome) = self.outcome(payload, id, run).await?;
        self.office.accept(&outcome).await;
        Ok((given, outcome))
    }

    async fn outcome(&mut self, payload: &RawValue, id: JobId, run: i64) -> Result<(Given, Outcome), Ruling> {
        let given = self.office.give(payload, id, run, soon(FETCH)).await;
        let given = given.ok_or_else(|| failed("it does not ask for work any more"))?;
        match self.office.outcome(given, soon(self.options.patience)).await {
            Some(outcome) => Ok((given, outcome)),
            None => Err(failed(format!("nothing is told of the job within {} s", self.options.patience.as_secs()))),
        }
    }

    async fn give(&mut self, payload: &RawValue, within: Duration) -> Option<Given> {
        self.office.give(payload, JobId::now_v7(), 1, soon(within)).await
    }

    /// Ends a run that has served its purpose, so that the next check finds a free worker.
    async fn drop_run(&mut self, given: Given) {
        self.office.states.insert((given.id, given.run), "cancel");
        if let Some(outcome) = self.office.outcome(given, soon(self.options.patience)).await {
            self.office.accept(&outcome).await;
        }
    }
}

fn in_words(outcome: &Outcome) -> String {
    match outcome.verb.as_str() {
        "complete" => format!("complete with the result {}", short(&outcome.body["result"].to_string())),
        "fail" => format!("fail: {}", short(outcome.body["message"].as_str().unwrap_or_default())),
        verb => verb.to_owned(),
    }
}
