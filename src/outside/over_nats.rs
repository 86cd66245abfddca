//! A handler that is asked by request-reply on `queue.handlers.<type>`.

use std::{future::Future, pin::Pin, time::Duration};

use async_nats::{HeaderMap, Message, StatusCode, client::PublishErrorKind};
use chrono::Utc;
use serde_json::value::RawValue;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Callers,
    presence::Presence,
    replies::Expected,
    reply::{self, Said},
    request,
};
use crate::{
    broker::Broker,
    handlers::{
        Ended, RunContext,
        typed::{Erased, Run},
    },
    job::{Failure, FailureKind, JobType, span::rounded},
    ops::work::TOO_LARGE,
};

/// When a job is offered again that could not even be asked for.
const LATER: Duration = Duration::from_secs(1);
/// How often is looked whether a connection that was lost is there again.
const LOOK: Duration = Duration::from_millis(200);

pub(super) struct OverNats {
    callers: Callers,
    presence: Presence,
    subject: String,
    heartbeat: Option<Duration>,
}

impl OverNats {
    pub fn new(callers: Callers, job_type: JobType, heartbeat: Option<Duration>) -> Self {
        let subject = callers.broker.subjects.handler(job_type.as_str());
        let presence = Presence::new(job_type, callers.store.clone(), callers.broker.clone());
        Self { callers, presence, subject, heartbeat }
    }

    async fn ask(&self, ctx: &RunContext) -> Ended {
        let broker = &self.callers.broker;
        if !broker.is_connected() {
            return Ended::Released(LATER);
        }
        let Some(body) = self.callers.body(ctx).await else { return Ended::Released(LATER) };
        let mut headers = HeaderMap::new();
        for (name, value) in request::headers(ctx, Utc::now()) {
            headers.insert(name, value);
        }
        let mut expected = self.callers.replies.expect(ctx);
        let (subject, reply, size) = (self.subject.clone(), self.callers.replies.subject(ctx), body.len());
        let sent = broker.jetstream.publish_with_reply_and_headers(subject, reply, headers, body.into());
        match sent.await.map_err(|e| e.kind()) {
            Ok(()) => {
                self.presence.asked();
                self.survive_us(ctx).await;
                self.answer(ctx, &mut expected).await
            }
            Err(PublishErrorKind::MaxPayloadExceeded) => {
                // Nobody's fault, and it passes when the limit is raised: no attempt is spent. `getJob` says why it waits.
                let max = broker.max_payload().unwrap_or_default();
                tracing::debug!(job.id = %ctx.job_id, "job {} has {size} bytes, NATS takes {max}", ctx.job_id);
                Ended::Released(TOO_LARGE)
            }
            Err(_) => Ended::Released(LATER),
        }
    }

    /// A long run is not to begin again when this process is killed: its handler goes on.
    async fn survive_us(&self, ctx: &RunContext) {
        if ctx.time_left() <= self.callers.lease || self.heartbeat.is_some() {
            return;
        }
        // We end it ourselves at its time; only when we are gone does anybody else.
        let (left, grace) = (ctx.time_left(), self.callers.lease);
        if let Err(e) = self.callers.store.leave_outside(ctx.job_id, ctx.run, left, None, grace).await {
            tracing::debug!(job.id = %ctx.job_id, "job {} has the lease of this process alone: {e}", ctx.job_id);
        }
    }

    async fn answer(&self, ctx: &RunContext, expected: &mut Expected) -> Ended {
        loop {
            let silence = silence(self.heartbeat, expected.heard.clone(), &self.callers.broker);
            let answer = tokio::select! {
                answer = expected.next() => answer,
                span = silence => {
                    let span = rounded(span);
                    let message = format!("the handler gave no sign of life for {span}");
                    return Ended::Failed(Failure::new(FailureKind::Lost, message));
                }
            };
            // Nobody can say anything more: the connection is closed for good.
            let Some(answer) = answer else { return Ended::Released(LATER) };
            if answer.status == Some(StatusCode::NO_RESPONDERS) {
                return Ended::Released(self.presence.nobody().await);
            }
            self.presence.somebody().await;
            let said = said(&answer);
            if reply::is_of_another_run(&said, &ctx.job_id.to_string(), ctx.run) {
                tracing::warn!(job.id = %ctx.job_id, "an answer for job {} names another run; it was dropped", ctx.job_id);
                continue;
            }
            return reply::judge(&said, &answer.payload, self.callers.max_result);
        }
    }
}

impl Erased for OverNats {
    fn run<'a>(&'a self, ctx: &'a RunContext, _: &'a RawValue) -> Run<'a> {
        Box::pin(self.ask(ctx))
    }

    fn room(&self) -> usize {
        self.presence.room()
    }

    fn seen(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.presence.somebody())
    }
}

/// Ends when nothing was heard for as long as the type allows. A time in which nothing could be heard does not count.
async fn silence(heartbeat: Option<Duration>, heard: watch::Receiver<Instant>, broker: &Broker) -> Duration {
    let Some(span) = heartbeat else { return std::future::pending().await };
    let (mut connects, mut back) = (broker.connects(), None);
    loop {
        let end = (*heard.borrow()).max(back.unwrap_or(*heard.borrow())) + span;
        if end > Instant::now() {
            sleep_until(end).await;
        } else if broker.is_connected() && broker.connects() == connects {
            return span;
        } else {
            while !broker.is_connected() {
                sleep(LOOK).await;
            }
            (connects, back) = (broker.connects(), Some(Instant::now()));
        }
    }
}

pub(crate) fn said(answer: &Message) -> Said<'_> {
    let header = |name: &str| answer.headers.as_ref().and_then(|headers| headers.get(name)).map(|value| value.as_str());
    Said {
        error_code: header("Nats-Service-Error-Code"),
        error: header("Nats-Service-Error"),
        retry: header("Job-Retry"),
        retry_after: header("Job-Retry-After"),
        release: header("Job-Release"),
        accepted: header("Job-Accepted"),
        job_id: header("Job-Id"),
        run: header("Job-Run"),
    }
}
