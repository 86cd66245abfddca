//! What is measured: private servers and a service in a child, or a service that runs already.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::StreamExt;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{
    noop,
    usage::{self, Usage},
};
use crate::{
    broker::Subjects,
    config::Config,
    dev::{
        Servers,
        folder::Folder,
        nats::PortChoice,
        postgres::{Durability, free_port},
        process::{Kept, Program},
    },
    handlers::clients::install_crypto,
    ops::wire::StatusCounts,
};

/// How long connections that nobody uses are kept.
const IDLE: Duration = Duration::from_secs(5);
const START: Duration = Duration::from_secs(30);
/// Longest wait for a single answer.
const ANSWER: Duration = Duration::from_secs(60);

pub(super) struct Stage {
    own: Option<Own>,
    client: Client,
}

/// Where requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    Rpc,
    Http,
}

/// Everything that was started for the measurement.
pub(super) struct Own {
    service: Kept,
    schema: String,
    /// `None`: those of the stage beside.
    servers: Option<Servers>,
    folder: Option<Folder>,
}

/// One end of the load. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    nats: async_nats::Client,
    http: Option<(reqwest::Client, String)>,
    subjects: Subjects,
    job_type: String,
    payload: Value,
}

/// Of service, Postgres and nats-server.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    pub service: Usage,
    pub postgres: Usage,
    pub nats: Usage,
}

impl Stage {
    /// Starts servers and a service in a new folder.
    pub async fn own(config: &Config) -> anyhow::Result<Self> {
        install_crypto();
        let folder = Folder::throw_away()?;
        let servers = Servers::start(folder.path(), Durability::Durable, PortChoice::Any).await?;
        let (service, client) = start_service(&servers, folder.path(), &config.nats.prefix, "queue").await?;
        let own = Own { service, schema: "queue".into(), servers: Some(servers), folder: Some(folder) };
        Ok(Self { own: Some(own), client })
    }

    /// A second service on the same servers, with a schema and a prefix of its own: as new, whatever is in this one. Ends
    /// before this one does.
    pub async fn twin(&self, name: &str) -> anyhow::Result<Self> {
        let own = self.own.as_ref().context("only private servers have room for a second service")?;
        let (servers, folder) = own.servers.as_ref().zip(own.folder.as_ref()).context("it is a twin itself")?;
        let (service, client) = start_service(servers, folder.path(), name, name).await?;
        Ok(Self { own: Some(Own { service, schema: name.into(), servers: None, folder: None }), client })
    }

    /// Connects to a service that runs already.
    pub async fn running(config: &Config, job_type: &str, payload: &Value) -> anyhow::Result<Self> {
        let (options, servers) = crate::broker::login::prepare(&config.nats).await?;
        let client = Client {
            nats: options.connect(servers).await.context("can't connect to NATS: is the service running?")?,
            http: None,
            subjects: Subjects::new(&config.nats.prefix),
            job_type: job_type.to_owned(),
            payload: payload.clone(),
        };
        Ok(Self { own: None, client })
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    pub fn has_http(&self) -> bool {
        self.client.http.is_some()
    }

    pub fn servers(&self) -> Option<&Servers> {
        self.own.as_ref()?.servers.as_ref()
    }

    pub fn service_pid(&self) -> Option<u32> {
        self.own.as_ref().and_then(|own| own.service.pid())
    }

    pub fn sample(&self) -> Sample {
        let Some(own) = &self.own else { return Sample::default() };
        let servers = own.servers.as_ref();
        Sample {
            service: usage::of(own.service.pid(), false),
            postgres: usage::of(servers.and_then(|servers| servers.postgres.pid()), true),
            nats: usage::of(servers.and_then(|servers| servers.nats.pid()), false),
        }
    }

    pub async fn end(self) {
        let Some(Own { mut service, servers, folder, .. }) = self.own else { return };
        let stop = move || {
            service.stop(Duration::from_secs(20));
            if let Some(servers) = servers {
                servers.stop();
            }
            drop(folder);
        };
        let _ = tokio::task::spawn_blocking(stop).await;
    }

    /// The schema of the service's tables.
    pub fn schema(&self) -> &str {
        self.own.as_ref().map_or("queue", |own| &own.schema)
    }
}

/// A service in a process of its own, and one who asks it; returns when it answers.
async fn start_service(servers: &Servers, folder: &Path, prefix: &str, schema: &str) -> anyhow::Result<(Kept, Client)> {
    let port = free_port()?;
    let settings = [
        format!("QUEUE__DATABASE__URL={}", servers.postgres.url("queue")),
        format!("QUEUE__DATABASE__SCHEMA={schema}"),
        format!("QUEUE__NATS__URL={}", servers.nats.url()),
        format!("QUEUE__NATS__PREFIX={prefix}"),
        format!("QUEUE__HTTP__BIND=127.0.0.1:{port}"),
    ];
    let program = Program {
        name: "service",
        path: PathBuf::from("/usr/bin/env"),
        arguments: settings
            .into_iter()
            .chain([std::env::current_exe()?.display().to_string(), "bench-serve".into()])
            .collect(),
        log: folder.join(format!("service-{schema}.log")),
        user: None,
        stop_signal: Signal::TERM,
    };
    let service = Kept::start(program)?;
    let http = reqwest::Client::builder().no_proxy().pool_idle_timeout(IDLE).build()?;
    let client = Client {
        nats: async_nats::connect(servers.nats.url()).await?,
        http: Some((http, format!("http://127.0.0.1:{port}"))),
        subjects: Subjects::new(prefix),
        job_type: noop::TYPE.to_owned(),
        payload: json!({"n": 1}),
    };
    tokio::time::timeout(START, client.until_ready()).await.context("the service did not start")?;
    Ok((service, client))
}

impl Client {
    async fn until_ready(&self) {
        while self.ask("getStats", json!({})).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The same with jobs of another type.
    pub fn of_type(&self, job_type: &str, payload: Value) -> Self {
        Self { job_type: job_type.to_owned(), payload, ..self.clone() }
    }

    /// The request of one job.
    pub fn request(&self) -> Value {
        json!({"type": self.job_type, "payload": self.payload})
    }

    pub fn nats(&self) -> &async_nats::Client {
        &self.nats
    }

    pub fn events(&self, state: &str) -> String {
        format!("{}.events.{}.{state}.*", self.subjects.prefix(), self.job_type)
    }

    /// Sends a body as it is, and gives the answer as it came.
    pub async fn send(&self, door: Door, bulk: bool, body: Bytes) -> anyhow::Result<Bytes> {
        match (door, &self.http) {
            (Door::Rpc, _) | (_, None) => {
                let subject = self.subjects.rpc(if bulk { "enqueueMany" } else { "enqueue" });
                let request = async_nats::Request::new().payload(body).timeout(Some(ANSWER));
                Ok(self.nats.send_request(subject, request).await?.payload)
            }
            (Door::Http, Some((http, root))) => {
                let url = format!("{root}/jobs{}", if bulk { "/batch" } else { "" });
                let request = http.post(url).header("content-type", "application/json").body(body);
                Ok(request.send().await?.bytes().await?)
            }
        }
    }

    pub async fn ask(&self, verb: &str, body: Value) -> anyhow::Result<Value> {
        let request = async_nats::Request::new().payload(body.to_string().into()).timeout(Some(ANSWER));
        let answer = self.nats.send_request(self.subjects.rpc(verb), request).await?;
        let body: Value = serde_json::from_slice(&answer.payload)?;
        if answer.headers.is_some_and(|headers| headers.get("Nats-Service-Error-Code").is_some()) {
            bail!("{verb}: {}", body["detail"]);
        }
        Ok(body)
    }

    /// The numbers of our type.
    pub async fn counts(&self) -> anyhow::Result<StatusCounts> {
        let stats = self.ask("getStats", json!({})).await?;
        Ok(serde_json::from_value(stats["byType"][&self.job_type].clone()).unwrap_or_default())
    }

    /// The numbers of all types.
    pub async fn all_counts(&self) -> anyhow::Result<StatusCounts> {
        Ok(serde_json::from_value(self.ask("getStats", json!({})).await?)?)
    }

    /// Makes a type that is done outside, and does it: every job's payload is its result.
    pub async fn work_outside(&self, job_type: &str) -> anyhow::Result<tokio::task::JoinHandle<()>> {
        self.ask("registerType", json!({"type": job_type, "handler": "nats"})).await?;
        let nats = self.nats.clone();
        let mut requests = nats.queue_subscribe(self.subjects.handler(job_type), "workers".into()).await?;
        Ok(tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                if let Some(reply) = request.reply {
                    let _ = nats.publish(reply, "null".into()).await;
                }
            }
        }))
    }

    /// A number of `/metrics`.
    pub async fn metric(&self, name: &str) -> anyhow::Result<usize> {
        let (http, root) = self.http.as_ref().context("there is no HTTP door")?;
        let text = http.get(format!("{root}/metrics")).send().await?.text().await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.context("no such number")?.parse().context("no number")
    }

    pub async fn pause(&self) -> anyhow::Result<()> {
        self.ask("pauseType", json!({"type": self.job_type})).await.map(|_| ())
    }

    pub async fn resume(&self) -> anyhow::Result<()> {
        self.ask("resumeType", json!({"type": self.job_type})).await.map(|_| ())
    }
}
