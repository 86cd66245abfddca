//! Health: can jobs be taken, and will they run? Every check looks at the real thing.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::Serialize;

use super::Ops;
use crate::{
    broker::findings::{Finding, Part, Stream},
    job::Work,
    supervise::Report,
};

/// How the service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    Ok,
    /// Jobs are taken, but may run late.
    Degraded,
    /// Jobs can't be taken.
    Unavailable,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Health {
    pub status: HealthStatus,
    pub checks: BTreeMap<&'static str, Check>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Check {
    pub status: HealthStatus,
    /// What was seen, and what to do about it.
    pub detail: String,
}

/// Has its check anyhow.
const WAKE_UPS: Part = Part::Stream(Stream::WakeUps);
/// Longest look at one part.
const PATIENCE: Duration = Duration::from_secs(2);
/// Things that a check names, at most.
const NAMED: usize = 10;
/// Missing acknowledgements for so long mean that the broker takes messages and stores none.
const UNACKED: Duration = Duration::from_secs(5);

impl Ops {
    pub async fn health(&self) -> Health {
        let (postgres, workers, jetstream) = tokio::join!(self.postgres(), self.workers(), self.jetstream());
        let mut checks = BTreeMap::from([
            ("postgres", postgres),
            ("nats", self.nats()),
            ("jetstream", jetstream),
            ("tasks", self.tasks()),
            ("workers", workers),
        ]);
        checks.extend(self.handlers().map(|check| ("handlers", check)));
        checks.extend(self.refused());
        checks.extend(self.stopping().map(|check| ("service", check)));
        checks.extend(self.rows().map(|check| ("rows", check)));
        let status = checks.values().map(|check| check.status).max().unwrap_or(HealthStatus::Ok);
        Health { status, checks }
    }

    /// Whether jobs can be taken here: what a probe asks before it sends callers. Looks at nothing else, since a broker
    /// that hangs costs time but no job.
    pub async fn ready(&self) -> Check {
        match self.stopping() {
            Some(stopping) => Check { status: HealthStatus::Unavailable, ..stopping },
            None => self.postgres().await,
        }
    }

    /// `None` while this instance is to stay.
    fn stopping(&self) -> Option<Check> {
        let detail = "this instance is stopping: running jobs may end, new ones are for other instances";
        self.supervisor.is_stopping().then(|| check(HealthStatus::Degraded, detail))
    }

    async fn postgres(&self) -> Check {
        match tokio::time::timeout(PATIENCE, self.store.ping()).await {
            Ok(Ok(())) => check(HealthStatus::Ok, "answers"),
            Ok(Err(_)) | Err(_) => {
                let why = self.store.trouble().map_or(String::new(), |why| format!(" ({why})"));
                let detail = format!("gives no answer{why}: see that Postgres runs and can be reached");
                check(HealthStatus::Unavailable, detail)
            }
        }
    }

    fn nats(&self) -> Check {
        if self.broker.is_connected() {
            let version = self.broker.jetstream.server_info().version;
            return check(HealthStatus::Ok, format!("connected to nats-server {version}"));
        }
        let why = self.broker.connection_trouble().map_or(String::new(), |why| format!(" ({why})"));
        check(HealthStatus::Degraded, format!("not connected{why}: jobs are kept and run when NATS is back"))
    }

    async fn jetstream(&self) -> Check {
        if !self.broker.is_connected() {
            return check(HealthStatus::Degraded, "not known without a connection");
        }
        if let Some(finding) = self.broker.findings().into_iter().find(|finding| finding.part == WAKE_UPS) {
            return check(HealthStatus::Degraded, finding.detail);
        }
        if let Some(since) = self.publisher.trouble().filter(|since| *since > UNACKED) {
            let since = since.as_secs();
            let detail = match self.publisher.refusal() {
                Some(why) => format!("no acknowledgements for {since} s, the broker refuses messages: {why}"),
                None => format!(
                    "no acknowledgements for {since} s: look at the disk of nats-server; a full one needs a restart of it"
                ),
            };
            return check(HealthStatus::Degraded, detail);
        }
        match tokio::time::timeout(PATIENCE, self.broker.work_stream()).await {
            Ok(Ok(stream)) => check(HealthStatus::Ok, format!("{} waiting", stream.messages)),
            Ok(Err(e)) => check(HealthStatus::Degraded, format!("{e}; looked at again and made if it is missing")),
            Err(_) => check(HealthStatus::Degraded, "gives no answer"),
        }
    }

    /// What the broker refuses or gives less of, apart from the stream of wake-ups. Nothing while all is well.
    fn refused(&self) -> Vec<(&'static str, Check)> {
        if !self.broker.is_connected() {
            return Vec::new();
        }
        let others = self.broker.findings().into_iter().filter(|finding| finding.part != WAKE_UPS);
        others
            .map(|Finding { part, detail }| match part {
                Part::Stream(Stream::WakeUps) => ("jetstream", check(HealthStatus::Degraded, detail)),
                Part::Stream(Stream::DeadLetters) => ("dead-letters", check(HealthStatus::Degraded, detail)),
                Part::Stream(Stream::Events) => ("events", check(HealthStatus::Degraded, detail)),
                Part::Stream(Stream::Inbox) => ("inbox", check(HealthStatus::Degraded, detail)),
                Part::Stream(Stream::InboxDeadLetters) => ("inbox-dead-letters", check(HealthStatus::Degraded, detail)),
                Part::Lanes => ("consumers", check(HealthStatus::Degraded, detail)),
                Part::Shape => ("streams", check(HealthStatus::Degraded, detail)),
                // All runs, with less than was asked for.
                Part::Limits => ("limits", check(HealthStatus::Ok, detail)),
            })
            .collect()
    }

    /// The long-lived tasks of this process: one that has failed was started again.
    fn tasks(&self) -> Check {
        let report = self.supervisor.report();
        let named = |wanted: fn(&Report) -> bool| {
            let found: Vec<_> = report.iter().filter(|task| wanted(task)).collect();
            let named: Vec<_> =
                found.iter().take(NAMED).map(|task| format!("{} ({})", task.name, task.restarts)).collect();
            let more = if found.len() > NAMED { ", …" } else { "" };
            (!found.is_empty()).then(|| format!("{}{more}", named.join(", ")))
        };
        if let Some(failing) = named(|task| task.is_failing) {
            let detail =
                format!("fail again and again, with the number of restarts: {failing}; look at the log for why");
            return check(HealthStatus::Degraded, detail);
        }
        let restarted = named(|task| task.restarts > 0).map(|named| format!("; restarted: {named}"));
        check(HealthStatus::Ok, format!("{} run{}", report.len(), restarted.unwrap_or_default()))
    }

    /// `None` where no handler outside is asked.
    fn handlers(&self) -> Option<Check> {
        let types = self.types.now();
        types.iter().find(|known| matches!(known.handler.work, Work::Nats | Work::Http))?;
        let away = &types.unattended;
        if away.is_empty() {
            return Some(check(HealthStatus::Ok, "all that were needed answer"));
        }
        let named = away.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if away.len() > NAMED { ", …" } else { "" };
        let detail = format!("nobody answers for {named}{more}: start their handlers; their jobs wait");
        Some(check(HealthStatus::Degraded, detail))
    }

    /// Jobs that the database refuses to read or to write; `None` where there are none.
    fn rows(&self) -> Option<Check> {
        let harmed = self.store.harmed().report();
        let (id, said) = harmed.first()?;
        let named = harmed.iter().take(NAMED).map(|(id, _)| id.to_string()).collect::<Vec<_>>().join(", ");
        let more = if harmed.len() > NAMED { ", …" } else { "" };
        let detail = format!("{} jobs have rows that are refused: {named}{more}; of {id}: {said}", harmed.len());
        Some(check(HealthStatus::Degraded, detail))
    }

    async fn workers(&self) -> Check {
        match tokio::time::timeout(PATIENCE, self.store.live_workers()).await {
            Ok(Ok(0)) => check(HealthStatus::Degraded, "none is alive: jobs are kept until one starts"),
            Ok(Ok(n)) => check(HealthStatus::Ok, format!("{n} alive")),
            Ok(Err(_)) | Err(_) => check(HealthStatus::Degraded, "not known without Postgres"),
        }
    }
}

fn check(status: HealthStatus, detail: impl Into<String>) -> Check {
    Check { status, detail: detail.into() }
}
