//! The checks of a handler that is called.

use std::time::Duration;

use async_nats::Message;
use futures_util::StreamExt;
use serde_json::{Value, value::RawValue};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    FIRST, NEEDS_BAD, NEEDS_LARGE, NEEDS_SLOW, Options, RESULT_MAX,
    peer::{Order, Peer, Run, difference, in_words, short},
    program::{NOT_OURS, Program},
    report::{Report, Ruling, Sheet, failed, passed, skipped, warned},
};
use crate::{
    handlers::{Ended, context::CHECKPOINT_MAX},
    job::{FailureKind, model::JobId, settle::MESSAGE_MAX},
    outside::replies::Sign,
    types::{Definition, introduction::types_of},
};

/// After an answer, how long a second one is waited for.
const SECOND: Duration = Duration::from_millis(500);
/// Source: docs/protocol.md, worker.cancel_grace.
const CANCEL: Duration = Duration::from_secs(5);

pub(super) async fn examine(
    peer: Peer,
    options: &Options,
    mut program: Program,
    mut report: Sheet<'_>,
) -> anyhow::Result<Report> {
    let mut course = Course { peer, options, heard: Vec::new(), accepts: false };
    let there = course.somebody_listens(&mut program).await?;
    if !report.note("somebody listens on the subject", there) {
        return Ok(report.done());
    }
    report.note("it introduces itself as a micro-service", course.introduction().await?);
    report.note("a job is answered with its result, once", course.a_job().await?);
    report.note("jobs that come together get each their own answer", course.many().await?);
    report.note("a job that comes again is done again", course.again().await?);
    report.note("a message that comes twice does no harm", course.doubled().await?);
    report.note("a request that is no JSON is answered with an error", course.garbage().await?);
    report.note("what can't succeed is told as a failure for good", course.bad().await?);
    report.note("no result is larger than 256 KiB", course.large().await?);
    report.note("it stops when the job is cancelled", course.cancelled().await?);
    report.note("it stops at the deadline", course.deadline().await?);
    report.note("progress has the form that is understood", course.signs());
    report.note("a checkpoint is taken up again", course.checkpoint().await?);
    if course.accepts {
        report.note("a finish that gets no answer is told again", course.unanswered().await?);
        report.note("every queue.finish has the form of the protocol", course.form().await);
    }
    report.note("after all that it still does its work", course.a_job().await?);
    report.note("it gives an answer for what it has in hand when it is told to end", course.end(&program).await?);
    report.note("it ends when it is told to", program.ended().await);
    Ok(report.done())
}

struct Course<'o> {
    peer: Peer,
    options: &'o Options,
    /// All progress that was heard, with the number of the run that it should name.
    heard: Vec<Message>,
    /// It has answered with Job-Accepted.
    accepts: bool,
}

impl Course<'_> {
    /// The first run of a new job.
    fn order<'p>(&self, payload: &'p RawValue) -> Order<'p> {
        Order { payload, id: JobId::now_v7(), run: 1, checkpoint: None, within: self.options.patience }
    }

    /// Waits for a handler that is only starting.
    async fn somebody_listens(&mut self, program: &mut Program) -> anyhow::Result<Ruling> {
        let patience = if program.is_ours() { FIRST } else { Duration::ZERO };
        let end = Instant::now() + patience;
        loop {
            let mut run = self.peer.ask(self.order(&self.options.payload)).await?;
            let told = run.told_in_time().await;
            let accepted = run.accepted;
            self.keep(run);
            match told {
                Some(told) if told.is_nobody => {}
                Some(_) if accepted && !self.peer.ends.lock().await.are_heard() => {
                    return Ok(failed(format!(
                        "it answers with Job-Accepted, and its queue.finish goes to the service under the prefix '{}': give both \
                         another prefix to have it checked",
                        self.peer.prefix
                    )));
                }
                Some(_) => return Ok(passed("")),
                None => return Ok(failed("it was asked, and gave no answer in time")),
            }
            if let Some(gone) = program.has_ended() {
                return Ok(failed(gone));
            }
            if Instant::now() >= end {
                return Ok(failed("nobody does: start the handler first, or give its command line after `--`"));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn introduction(&self) -> anyhow::Result<Ruling> {
        let subject = format!("{}.handlers.{}", self.peer.prefix, self.peer.job_type);
        let inbox = self.peer.nats.new_inbox();
        let mut answers = self.peer.nats.subscribe(inbox.clone()).await?;
        self.peer.nats.publish_with_reply("$SRV.INFO", inbox, Default::default()).await?;
        let end = Instant::now() + SECOND;
        while let Ok(Some(answer)) = timeout_at(end, answers.next()).await {
            let said = types_of(&answer.payload, |_| subject.clone());
            if let Some((name, definition)) = said.into_iter().next() {
                if name != self.peer.job_type.as_str() {
                    return Ok(failed(format!(
                        "its metadata has queue.type {}, the subject says otherwise",
                        short(&name)
                    )));
                }
                return Ok(match serde_json::from_value::<Definition>(definition) {
                    Ok(_) => passed("so nobody has to register the type"),
                    Err(e) => failed(format!("its metadata is not understood: {e}")),
                });
            }
        }
        Ok(skipped("it does not; the type has to be registered"))
    }

    async fn a_job(&mut self) -> anyhow::Result<Ruling> {
        let mut run = self.peer.ask(self.order(&self.options.payload)).await?;
        let Some(told) = run.told_in_time().await else { return Ok(failed("no answer in time")) };
        let took = run.sent.elapsed();
        let second = run.another(Instant::now() + SECOND).await;
        let accepted = run.accepted;
        self.keep(run);
        if told.is_of_another_run {
            return Ok(failed("the headers Job-Id and Job-Run of the answer name another run"));
        }
        if second {
            return Ok(failed("a second answer came for the same run"));
        }
        let how = if accepted { ", by queue.finish" } else { "" };
        Ok(match told.ended {
            Ended::Done(_) => passed(format!("{} ms{how}", took.as_millis())),
            other => failed(format!("the answer was {}", in_words(&other))),
        })
    }

    async fn many(&mut self) -> anyhow::Result<Ruling> {
        const MANY: usize = 10;
        let mut runs = Vec::new();
        for _ in 0..MANY {
            runs.push(self.peer.ask(self.order(&self.options.payload)).await?);
        }
        let mut answered = 0;
        for mut run in runs {
            let Some(told) = run.told_in_time().await else { continue };
            if told.is_of_another_run {
                return Ok(failed("an answer names another job in its headers"));
            }
            if run.another(Instant::now() + Duration::from_millis(50)).await {
                return Ok(failed("two answers came for one of the jobs"));
            }
            answered += usize::from(!matches!(told.ended, Ended::Outside));
            self.keep(run);
        }
        Ok(match answered {
            MANY => passed(format!("{MANY} of {MANY}")),
            fewer => failed(format!("{fewer} of {MANY} were answered in time")),
        })
    }

    async fn again(&mut self) -> anyhow::Result<Ruling> {
        let first = self.order(&self.options.payload);
        let second = Order { id: first.id, run: 2, ..self.order(&self.options.payload) };
        let mut ends = Vec::new();
        for order in [first, second] {
            let mut run = self.peer.ask(order).await?;
            let Some(told) = run.told_in_time().await else {
                return Ok(failed("no answer; a job may come again when its worker was lost before the record"));
            };
            ends.push(told.ended);
            self.keep(run);
        }
        Ok(match difference(&ends[0], &ends[1]) {
            None => passed("with the same result"),
            Some(place) => {
                let (first, second) = (in_words(&ends[0]), in_words(&ends[1]));
                warned(format!("with another result{place}: first {first}, then {second}"))
            }
        })
    }

    async fn doubled(&mut self) -> anyhow::Result<Ruling> {
        let order = self.order(&self.options.payload);
        let twin = Order { id: order.id, ..self.order(&self.options.payload) };
        let mut first = self.peer.ask(order).await?;
        let second = self.peer.ask(twin).await?;
        let told = first.told_in_time().await;
        self.keep(second);
        self.keep(first);
        // The first answer counts, whichever of the two messages it is for.
        Ok(match told.map(|told| told.ended) {
            Some(Ended::Failed(failure)) if failure.kind == FailureKind::Permanent => failed(format!(
                "the first answer was a failure for good, which ends the job although the other message of it succeeds: {}",
                short(&failure.message)
            )),
            Some(Ended::Failed(failure)) => warned(format!(
                "the first answer was a failure, which spends an attempt although the other message of it succeeds: {}",
                short(&failure.message)
            )),
            Some(Ended::Outside) => failed("it was accepted, and no queue.finish came in time"),
            Some(ended) => passed(format!("the first answer was {}", in_words(&ended))),
            None => failed("neither of the two was answered"),
        })
    }

    async fn garbage(&mut self) -> anyhow::Result<Ruling> {
        let order = Order { within: Duration::from_secs(3), ..self.order(&self.options.payload) };
        let mut run = self.peer.ask_with(order, b"{\"payload\": ".to_vec()).await?;
        Ok(match run.told_in_time().await.map(|told| told.ended) {
            Some(Ended::Failed(failure)) => passed(short(&failure.message)),
            Some(other) => warned(format!("the answer was {}", in_words(&other))),
            None => warned("no answer: the service would wait for the deadline"),
        })
    }

    async fn bad(&mut self) -> anyhow::Result<Ruling> {
        let Some(payload) = &self.options.bad else {
            return Ok(skipped(NEEDS_BAD));
        };
        let mut run = self.peer.ask(self.order(payload)).await?;
        let Some(told) = run.told_in_time().await else { return Ok(failed("no answer in time")) };
        let by_answer = !run.accepted;
        self.keep(run);
        let code = told.code.unwrap_or_default();
        Ok(match told.ended {
            Ended::Failed(_) if by_answer && !code.parse::<u16>().is_ok_and(|code| (100..600).contains(&code)) => {
                failed(format!("Nats-Service-Error-Code is '{}'; it has to be a number from 100 to 599", short(&code)))
            }
            Ended::Failed(failure) if failure.kind == FailureKind::Permanent => passed(short(&failure.message)),
            Ended::Failed(failure) => {
                let want = if by_answer { "Job-Retry: false" } else { "\"retry\": false" };
                warned(format!("it would be tried again for want of {want} ({})", short(&failure.message)))
            }
            other => failed(format!("the answer was {}", in_words(&other))),
        })
    }

    async fn large(&mut self) -> anyhow::Result<Ruling> {
        let Some(payload) = &self.options.large else {
            return Ok(skipped(NEEDS_LARGE));
        };
        let mut run = self.peer.ask(self.order(payload)).await?;
        let Some(told) = run.told_in_time().await else { return Ok(failed("no answer in time")) };
        self.keep(run);
        Ok(match told.size {
            size if size > RESULT_MAX => failed(format!(
                "the result has {size} bytes, which the service makes a permanent failure; store it elsewhere and answer with a link"
            )),
            _ => passed(format!("the answer was {}", in_words(&told.ended))),
        })
    }

    async fn cancelled(&mut self) -> anyhow::Result<Ruling> {
        let Some(slow) = &self.options.slow else { return Ok(skipped(NEEDS_SLOW)) };
        let mut run = self.peer.ask(self.order(slow)).await?;
        if run.at_work(Instant::now() + Duration::from_secs(2)).await {
            return Ok(skipped("the job was over before it could be cancelled; choose a longer one for --slow"));
        }
        self.peer.cancel(run.id).await?;
        let asked = Instant::now();
        let told = run.told(asked + CANCEL).await.map(|told| told.ended);
        let took = asked.elapsed();
        self.keep(run);
        Ok(match told {
            None | Some(Ended::Outside) => {
                failed(format!("nothing is told of it within {} s; the work goes on for nothing", CANCEL.as_secs()))
            }
            Some(Ended::Done(_)) => warned("it was done all the same"),
            _ => passed(format!("after {} ms", took.as_millis())),
        })
    }

    async fn deadline(&mut self) -> anyhow::Result<Ruling> {
        const SHORT: Duration = Duration::from_secs(2);
        /// Clocks differ, and stopping takes a moment.
        const LENIENT: Duration = Duration::from_secs(1);
        let Some(slow) = &self.options.slow else { return Ok(skipped(NEEDS_SLOW)) };
        let mut run = self.peer.ask(Order { within: SHORT, ..self.order(slow) }).await?;
        let late = run.deadline + LENIENT;
        let first = run.told(late).await.map(|told| told.ended).filter(|ended| !matches!(ended, Ended::Outside));
        if let Some(Ended::Done(_)) = first {
            self.keep(run);
            return Ok(skipped("the job was over in two seconds; choose a longer one for --slow"));
        }
        let end = late + Duration::from_secs(3);
        let after = match first {
            Some(_) => run.another(end).await,
            None => run.told(end).await.is_some_and(|told| matches!(told.ended, Ended::Done(_))),
        };
        let goes_on = run.heard.iter().any(|(at, _)| *at > late);
        self.keep(run);
        Ok(match (goes_on, after) {
            (true, _) => failed("it goes on after Job-Deadline; its result is not wanted any more"),
            (false, true) => failed("its result came after Job-Deadline"),
            (false, false) if first.is_some() => passed(""),
            (false, false) => passed("silently"),
        })
    }

    fn signs(&self) -> Ruling {
        if self.heard.is_empty() {
            return skipped("none was published");
        }
        for message in &self.heard {
            if let Err(fault) = check_sign(message) {
                return failed(format!("{fault}: {}", short(&String::from_utf8_lossy(&message.payload))));
            }
        }
        passed(format!("{} messages", self.heard.len()))
    }

    async fn checkpoint(&mut self) -> anyhow::Result<Ruling> {
        let kept = self.heard.iter().rev().find_map(|message| Sign::read(message)?.2.checkpoint);
        let Some(kept) = kept else { return Ok(skipped("none was published")) };
        let order = Order { checkpoint: Some(&kept), run: 2, ..self.order(&self.options.payload) };
        let mut run = self.peer.ask(order).await?;
        let told = run.told_in_time().await;
        self.keep(run);
        Ok(match told.map(|told| told.ended) {
            Some(Ended::Done(_)) => passed(""),
            Some(other) => failed(format!("the answer to a run with one was {}", in_words(&other))),
            None => failed("a run with one got no answer in time"),
        })
    }

    async fn end(&mut self, program: &Program) -> anyhow::Result<Ruling> {
        if !program.is_ours() {
            return Ok(skipped(NOT_OURS));
        }
        let payload: &RawValue = self.options.slow.as_deref().unwrap_or(&self.options.payload);
        let mut run = self.peer.ask(self.order(payload)).await?;
        let early = run.at_work(Instant::now() + Duration::from_secs(1)).await;
        program.terminate();
        if early {
            return Ok(skipped(NEEDS_SLOW));
        }
        let told = run.told(Instant::now() + Duration::from_secs(12)).await;
        Ok(match told.map(|told| told.ended) {
            Some(Ended::Outside) => warned("nothing is told of what it had accepted: release it by queue.finish"),
            Some(ended) => passed(in_words(&ended)),
            None => warned("no answer: the service waits for the deadline. Answer with Job-Release: true"),
        })
    }

    async fn unanswered(&mut self) -> anyhow::Result<Ruling> {
        let mut run = self.peer.ask(self.order(&self.options.payload)).await?;
        self.peer.ends.lock().await.silent = true;
        let first = run.told_in_time().await;
        self.peer.ends.lock().await.silent = false;
        let Some(first) = first.filter(|_| run.accepted) else { return Ok(skipped("this time it was not accepted")) };
        let patience = self.options.patience.min(Duration::from_secs(15));
        let second = run.told_again(Instant::now() + patience).await;
        self.keep(run);
        Ok(match second.map(|second| difference(&first.ended, &second.ended)) {
            Some(None) => passed(""),
            Some(Some(place)) => warned(format!("with another content{place}")),
            None => warned("it is not: what is not recorded runs again when its time is up"),
        })
    }

    async fn form(&self) -> Ruling {
        match self.peer.ends.lock().await.faults.first() {
            None => passed(""),
            Some(fault) => failed(fault),
        }
    }

    fn keep(&mut self, run: Run) {
        self.accepts |= run.accepted;
        self.heard.extend(run.heard.into_iter().map(|(_, message)| message));
    }
}

/// Whether a message on the progress subject is as docs/protocol.md has it.
fn check_sign(message: &Message) -> Result<(), String> {
    let value: Value = serde_json::from_slice(&message.payload).map_err(|e| format!("it is no JSON ({e})"))?;
    let (.., sign) = Sign::read(message).ok_or("`run` has to be the number of the run")?;
    let unknown = value.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    let known = ["run", "percent", "message", "checkpoint"];
    if let Some(key) = unknown.into_iter().find(|key| !known.contains(key)) {
        return Err(format!("'{key}' is not known"));
    }
    if sign.percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
        return Err("`percent` has to be 0 to 100".into());
    }
    if sign.message.is_some_and(|text| text.len() > MESSAGE_MAX) {
        return Err(format!("`message` is longer than {MESSAGE_MAX} bytes"));
    }
    if sign.checkpoint.is_some_and(|kept| kept.get().len() > CHECKPOINT_MAX) {
        return Err(format!("`checkpoint` is larger than {CHECKPOINT_MAX} bytes"));
    }
    Ok(())
}
