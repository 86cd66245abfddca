//! Servers, processes and wires that can be broken, and what is left in them at the end.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use chrono::Utc;
use futures_util::StreamExt;
use queue_service::config::{AllowPrivate, Config};
use rustix::process::Signal;
use serde_json::Value;
use sqlx::PgPool;

use super::{
    checker::{Disturbance, History, Row},
    plan::{Fault, Step},
    site::Site,
};
use crate::{
    child::Program,
    harness::{Place, servers},
    own::{OwnNats, OwnPostgres, Places, open_folder},
    proxy::{Mode, Proxy},
};

/// How long all may take to be quiet after the last fault.
const QUIET: Duration = Duration::from_secs(60);
/// How long a process that is to die at a point may take to get there, when the step does not allow more.
const REACH: Duration = Duration::from_secs(4);

pub struct World {
    /// As it is without wires between.
    pub config: Config,
    pub site: Site,
    own: Option<Own>,
    services: Vec<Service>,
    pub disturbances: Vec<Disturbance>,
    pub dead_letters_since: Option<chrono::DateTime<Utc>>,
    /// What was really reached, and how often.
    pub sometimes: BTreeMap<String, u32>,
}

/// Servers that may be killed.
struct Own {
    postgres: OwnPostgres,
    nats: OwnNats,
    _folder: tempfile::TempDir,
}

/// A process of the service and its two wires.
struct Service {
    config: Config,
    to_postgres: Proxy,
    to_nats: Proxy,
    program: Program,
    variables: Vec<(&'static str, PathBuf)>,
}

impl Service {
    /// Another process in the place of the one that has ended.
    async fn start_again(&mut self) {
        self.program = Program::serve_with(&self.config, &self.variables).await;
    }
}

impl World {
    /// On the servers that all tests share; `variables` are in the environment of each process.
    pub async fn shared(services: usize, variables: &[(&'static str, &str)], change: impl FnOnce(&mut Config)) -> Self {
        let config = Place::new().await.config;
        let servers = servers().await;
        let postgres = address(&servers.postgres.url("x"));
        let nats = address(&servers.nats.url());
        Self::start(config, None, (postgres, nats), services, variables, change).await
    }

    /// On servers of its own.
    pub async fn own(services: usize) -> Self {
        let folder = open_folder();
        let mut nats = OwnNats::new(&folder.path().join("nats"), "chaos", "");
        let mut postgres = OwnPostgres::new(&folder.path().join("postgres"), &[], Places::Together).await;
        tokio::join!(nats.start(), postgres.start());
        postgres.run("CREATE DATABASE chaos").await;
        let mut config = Place::new().await.config;
        config.database.url = postgres.url("chaos");
        config.nats.url = nats.url();
        let addresses = (postgres.address(), address(&nats.url()));
        let own = Own { postgres, nats, _folder: folder };
        Self::start(config, Some(own), addresses, services, &[], |_| ()).await
    }

    async fn start(
        mut config: Config,
        own: Option<Own>,
        (postgres, nats): (SocketAddr, SocketAddr),
        services: usize,
        variables: &[(&'static str, &str)],
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let site = Site::start().await;
        let section = format!("handler = 'http'\nurl = '{}'\ntimeout = '20s'\nconcurrency = 40", site.url);
        config.types.insert("chaos".into(), toml::from_str(&section).unwrap());
        config.handlers.allow_private = AllowPrivate::All(true);
        config.http.enabled = false;
        config.worker.types = vec!["chaos".into()];
        config.worker.drain = Duration::from_millis(300);
        config.log.filter = "queue_service=debug".into();
        change(&mut config);
        let mut world = Self {
            config,
            site,
            own,
            services: Vec::new(),
            disturbances: Vec::new(),
            dead_letters_since: None,
            sometimes: BTreeMap::new(),
        };
        for _ in 0..services {
            let (to_postgres, to_nats) = (Proxy::start(postgres).await, Proxy::start(nats).await);
            let mut config = world.config.clone();
            config.database.url = through(&config.database.url, postgres, to_postgres.address);
            config.nats.url = through(&config.nats.url, nats, to_nats.address);
            let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, PathBuf::from(value))).collect();
            let program = Program::serve_with(&config, &variables).await;
            world.services.push(Service { config, to_postgres, to_nats, program, variables });
        }
        world
    }

    /// Carries out one step and heals what it broke.
    pub async fn carry_out(&mut self, step: &Step) {
        let from = Utc::now();
        let reached = self.strike(step).await;
        // A lease that was not renewed ends later than the fault, and a process that was cut off may believe in it longer.
        let to = Utc::now() + self.config.worker.lease * 2;
        self.disturbances.push(Disturbance { from, to });
        if reached {
            *self.sometimes.entry(name(step.fault)).or_default() += 1;
        }
        tokio::time::sleep(step.then).await;
    }

    async fn strike(&mut self, step: &Step) -> bool {
        let service = &mut self.services[step.service];
        match step.fault {
            Fault::Kill => {
                service.program.kill().await;
                service.start_again().await;
            }
            Fault::Freeze => {
                service.program.signal(Signal::STOP);
                tokio::time::sleep(step.lasts + self.config.worker.lease).await;
                service.program.signal(Signal::CONT);
            }
            Fault::Stop => {
                service.program.signal(Signal::TERM);
                let status = service.program.ended().await;
                assert!(status.success(), "a stop is no failure: {status}\n{}", service.program.log());
                service.start_again().await;
            }
            Fault::CrashAt(point) => return self.crash_at(step, point).await,
            Fault::KillNats | Fault::WipeNats => {
                let own = self.own.as_mut().expect("a broker of one's own");
                own.nats.kill().await;
                if step.fault == Fault::WipeNats {
                    std::fs::remove_dir_all(own.nats.store()).unwrap();
                }
                tokio::time::sleep(step.lasts).await;
                own.nats.start().await;
                if step.fault == Fault::WipeNats {
                    // What failed a moment before may have been published to the store that is gone.
                    self.dead_letters_since = Some(Utc::now() + Duration::from_secs(1));
                }
            }
            Fault::KillPostgres => {
                let own = self.own.as_mut().expect("a database of one's own");
                own.postgres.kill().await;
                tokio::time::sleep(step.lasts).await;
                own.postgres.start().await;
            }
            Fault::EndConnections => {
                let database = self.database().await;
                let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()
                           AND datname = current_database()";
                sqlx::query(end).execute(&database).await.unwrap();
            }
            Fault::ToPostgres(mode) => disturb(&service.to_postgres, mode, step.lasts).await,
            Fault::ToNats(mode) => disturb(&service.to_nats, mode, step.lasts).await,
        }
        true
    }

    async fn crash_at(&mut self, step: &Step, point: &'static str) -> bool {
        let service = &mut self.services[step.service];
        service.program.kill().await;
        let variables = [("QUEUE_CRASH_AT", PathBuf::from(format!("{point}:2")))];
        service.program = Program::start_with(&["serve"], Some(&service.config), &variables);
        let reached = service.program.ends_within(REACH.max(step.lasts)).await;
        if !reached {
            service.program.kill().await;
        }
        service.start_again().await;
        reached
    }

    /// Disturbs the wires of all processes to the broker for a while.
    pub async fn disturb_nats_of_all(&self, mode: Mode, span: Duration) {
        futures_util::future::join_all(self.services.iter().map(|service| disturb(&service.to_nats, mode, span))).await;
    }

    /// Disturbs the wires of all processes to the database for a while.
    pub async fn disturb_postgres_of_all(&self, mode: Mode, span: Duration) {
        let all = self.services.iter().map(|service| disturb(&service.to_postgres, mode, span));
        futures_util::future::join_all(all).await;
    }

    pub fn log(&self) -> String {
        let logs = self.services.iter().map(|service| service.program.log());
        logs.collect::<Vec<_>>().join("\n==== the next process ====\n")
    }

    pub async fn nats(&self) -> async_nats::Client {
        let options = async_nats::ConnectOptions::new().request_timeout(Some(Duration::from_secs(3)));
        options.retry_on_initial_connect().connect(&self.config.nats.url).await.unwrap()
    }

    pub async fn database(&self) -> PgPool {
        let options: sqlx::postgres::PgConnectOptions = self.config.database.url.parse().unwrap();
        let options = options.options([("search_path", self.config.database.schema.as_str())]);
        sqlx::postgres::PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap()
    }

    /// The most memory that any process ever had, in MiB.
    pub fn peak_memory(&self) -> u64 {
        let peak = |service: &Service| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", service.program.pid())).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default().to_owned();
            line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1024
        };
        self.services.iter().map(peak).max().unwrap_or_default()
    }

    /// Waits until nothing moves any more, for `patience` at most, and reads everything.
    pub async fn read(&self, patience: Option<Duration>) -> History {
        let database = self.database().await;
        let began = Instant::now();
        let patience = patience.unwrap_or(QUIET);
        while began.elapsed() < patience {
            let left = "SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM outbox)";
            let left: i64 = sqlx::query_scalar(left).fetch_one(&database).await.unwrap();
            if left == 0 && self.site.journal.running() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let count = "SELECT count(*) FROM outbox";
        History {
            asked: Vec::new(),
            calls: self.site.journal.calls(),
            rows: rows(&database).await,
            dead_letters: self.dead_letters().await,
            dead_letters_since: self.dead_letters_since,
            disturbances: self.disturbances.clone(),
            stats: self.stats().await,
            outbox: sqlx::query_scalar(count).fetch_one(&database).await.unwrap(),
        }
    }

    async fn stats(&self) -> BTreeMap<String, i64> {
        let nats = self.nats().await;
        let subject = format!("{}.getStats", self.config.nats.prefix);
        let answer = crate::harness::until(|| async { nats.request(subject.clone(), "".into()).await.ok() }).await;
        let stats: Value = serde_json::from_slice(&answer.payload).unwrap();
        ["pending", "processing", "completed", "failed", "cancelled"]
            .map(|status| (status.to_owned(), stats[status].as_i64().unwrap_or(-1)))
            .into()
    }

    /// The ids of all messages in the stream of dead letters.
    async fn dead_letters(&self) -> Vec<String> {
        let jetstream = async_nats::jetstream::new(self.nats().await);
        let name = match self.config.nats.prefix.as_str() {
            "queue" => "background-jobs-dlq".to_owned(),
            prefix => format!("{prefix}-background-jobs-dlq"),
        };
        let mut stream = jetstream.get_stream(name).await.unwrap();
        let expected = stream.info().await.unwrap().state.messages as usize;
        let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
        let messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
        let id = |message: async_nats::jetstream::Message| {
            message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id")).unwrap().as_str().to_owned()
        };
        messages.take(expected).map(|message| id(message.unwrap())).collect().await
    }
}

async fn rows(database: &PgPool) -> Vec<Row> {
    type Columns =
        (String, String, i16, i16, i64, Option<String>, Option<String>, Option<String>, Option<chrono::DateTime<Utc>>);
    let sql = "SELECT id::text, status, attempt, max_attempts, run, errors, result, idempotency_key, finished_at FROM all_jobs";
    let rows: Vec<Columns> = sqlx::query_as(sql).fetch_all(database).await.unwrap();
    let json = |text: Option<String>| serde_json::from_str::<Value>(&text.unwrap_or_default()).unwrap_or_default();
    let row = |(id, status, attempt, max_attempts, run, errors, result, key, finished_at): Columns| Row {
        id,
        status,
        attempt,
        max_attempts,
        run,
        errors: json(errors).as_array().map_or(0, Vec::len),
        result_of: json(result)["run"].as_i64(),
        key,
        finished_at,
    };
    rows.into_iter().map(row).collect()
}

async fn disturb(wire: &Proxy, mode: Mode, span: Duration) {
    wire.set(mode);
    tokio::time::sleep(span).await;
    // What was swallowed is gone for good, so its connections have to go as well.
    wire.set(Mode::Cut);
    wire.set(Mode::Pass);
}

/// What a fault is called among those that were reached.
pub fn name(fault: Fault) -> String {
    match fault {
        Fault::CrashAt(point) => format!("CrashAt({point})"),
        other => format!("{other:?}"),
    }
}

fn address(url: &str) -> SocketAddr {
    let rest = url.split("//").nth(1).unwrap();
    let rest = rest.rsplit('@').next().unwrap();
    rest.split('/').next().unwrap().replace("localhost", "127.0.0.1").parse().unwrap()
}

fn through(url: &str, from: SocketAddr, to: SocketAddr) -> String {
    let changed = url.replace(&from.to_string(), &to.to_string());
    assert_ne!(changed, url, "{url} does not name {from}");
    changed
}
