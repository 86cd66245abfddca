//! The roles of one process, wired: doors, worker and duties, started and stopped in order.

mod stop;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    background,
    broker::{self, Broker, Publisher},
    config::Config,
    faults,
    handlers::{Registry, clients::fetch::SetupError, registry},
    http, inbox,
    ops::{self, Ops},
    outside::{Callers, late},
    rpc,
    store::{self, Store},
    supervise::{self, Supervisor, Tasks},
    types::{self, Types},
    worker::{self, Worker, eager::Eager},
};

/// Pause between two tries to reach the database at the start.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// How long the start waits for the broker.
const BROKER: Duration = Duration::from_secs(3);

/// A running service.
pub struct Service {
    http: Option<SocketAddr>,
    ops: Ops,
    store: Store,
    broker: Broker,
    doors: Group,
    duties: Group,
    /// What has been taken in and must be written and told before the end.
    intake: Tasks,
    start: tokio::task::JoinHandle<Result<Option<Worker>, Error>>,
    ready: watch::Receiver<bool>,
    stop_start: CancellationToken,
    /// Dropped without a stop, a service ends as by a crash.
    _end: DropGuard,
}

/// Tasks that end together.
struct Group {
    tasks: Tasks,
    stop: CancellationToken,
}

impl Group {
    fn new(supervisor: &Supervisor) -> Self {
        Self { tasks: supervisor.tasks(), stop: CancellationToken::new() }
    }

    /// Ends all of them, and cuts off those that have not ended at `until`. Returns how many short ones there were among
    /// these.
    async fn end(self, until: Instant) -> usize {
        self.stop.cancel();
        self.tasks.close();
        if timeout_at(until, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        self.tasks.cut_off();
        self.tasks.short_ones()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Broker(#[from] broker::Error),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(transparent)]
    Types(#[from] types::Error),
    #[error(transparent)]
    Worker(#[from] worker::Error),
    #[error(transparent)]
    HttpClient(#[from] SetupError),
    #[error(transparent)]
    Http(#[from] http::Error),
    #[error("the task '{0}' of the service has failed; the log says how")]
    Died(String),
    #[error("the connection to NATS is closed")]
    Closed(#[from] async_nats::SubscribeError),
}

impl Service {
    /// Starts all roles that `config` names. Doors answer at once; a database or broker that is away is waited for, and
    /// callers are told `unavailable` meanwhile.
    ///
    /// # Errors
    /// Settings that can't be used, an HTTP address that is taken.
    pub async fn start(config: Config) -> Result<Self, Error> {
        Self::start_with(config, axum::Router::new(), Ok).await
    }

    /// As [`Service::start`], with further HTTP routes and further job types.
    ///
    /// # Errors
    /// As [`Service::start`].
    pub async fn start_with(
        config: Config,
        routes: axum::Router,
        add_types: impl FnOnce(Registry) -> Result<Registry, registry::Error>,
    ) -> Result<Self, Error> {
        let config = Arc::new(config);
        let store = Store::open(&config.database)?;
        // No lease of a run outside is ended before it is known whether there was an outage.
        store.reach().watch();
        let broker = Broker::connect(&config.nats, &config.background).await?;
        let supervisor = Supervisor::default();
        let end = supervisor.end_on_drop();
        let publisher = Publisher::start(&broker, &supervisor).await?;
        let builtin = Registry::builtin(&config, store.reads().clone(), &supervisor)?;
        let builtin = faults::with_misbehaviour(builtin)?;
        let registry = add_types(builtin)?;
        let worker_id = worker::new_id();
        let callers = Callers::new(&store, &broker, &config, &worker_id)?;
        let types = Types::new(config.clone(), &registry, callers.clone())?;
        let relay = Arc::new(Notify::new());
        let intake = supervisor.tasks();
        let eager = Eager::default();
        let deps =
            ops::Deps { store: store.clone(), broker: broker.clone(), publisher, config: config.clone(), types, relay };
        let ops = Ops::new(deps.clone(), eager.clone(), &intake);
        let (doors, duties) = (Group::new(&supervisor), Group::new(&supervisor));
        let mut http = None;
        if config.http.enabled {
            let door = http::start(ops.clone(), &config.http, routes, doors.stop.clone(), &doors.tasks);
            http = Some(door.await?);
        }
        if config.rpc.enabled {
            rpc::start(ops.clone(), &broker, &config, &doors.stop, &doors.tasks).await?;
        }
        let (told, ready) = watch::channel(false);
        let stop_start = supervisor.aborted().child_token();
        let start = Start {
            deps,
            callers,
            ops: ops.clone(),
            doors: (doors.stop.clone(), doors.tasks.clone()),
            worker_id,
            eager,
            duties: duties.tasks.clone(),
            stop: duties.stop.clone(),
            ready: told,
        };
        let start = supervisor.vital("start", start.run(stop_start.clone()));
        Ok(Self { http, ops, store, broker, doors, duties, intake, start, ready, stop_start, _end: end })
    }

    /// Where HTTP listens; `None` when it is switched off.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http
    }

    /// What can be asked, without a door between.
    pub fn ops(&self) -> &Ops {
        &self.ops
    }

    /// Returns when jobs are taken and run; `false` when that will never be, which [`Service::stop`] explains.
    pub async fn ready(&self) -> bool {
        self.ready.clone().wait_for(|ready| *ready).await.is_ok()
    }

    /// Who keeps its tasks.
    pub fn supervisor(&self) -> &Supervisor {
        self.intake.supervisor()
    }

    /// Returns when the start has failed for good, or a task without which the service can't go on.
    pub async fn failed(&self) {
        let not_ready = async {
            if self.ready().await {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = not_ready => {}
            () = self.supervisor().failed() => {}
        }
    }

    /// Stops. From now on nothing is begun: no job, no fetch, no wait. Everything else is answered while running jobs may end,
    /// for `worker.drain` or until `hurry`; then the rest is handed back, everything that was answered for is written, and
    /// the doors close. That takes 10 s more at most, whatever is away; the log says what was left behind.
    ///
    /// # Errors
    /// What kept the start from succeeding.
    pub async fn stop(self, hurry: CancellationToken) -> Result<(), Error> {
        let began = Instant::now();
        let Self { ops, store, broker, doors, duties, intake, mut start, stop_start, .. } = self;
        doors.tasks.supervisor().begin_stop();
        stop_start.cancel();
        let started = timeout_at(began + stop::START, &mut start).await;
        let (worker, outcome) = match started {
            Ok(Ok(Ok(worker))) => (worker, Ok(())),
            // It was logged.
            Ok(Err(_)) => (None, Err(Error::Died("start".into()))),
            Ok(Ok(Err(e))) => (None, Err(e)),
            Err(_) => {
                start.abort();
                (None, Ok(()))
            }
        };
        if let Some(worker) = &worker {
            worker.drain(&hurry).await;
        }
        let by = stop::Deadlines::from(Instant::now());
        let mut left = stop::Left::default();
        if let Some(worker) = worker {
            left.worker = worker.end(by.runs).await;
        }
        // The batchers end with the last handle to them.
        drop(ops);
        left.answers = doors.end(by.doors).await;
        intake.close();
        if timeout_at(by.intake, intake.wait()).await.is_err() {
            intake.cut_off();
        }
        duties.end(by.duties).await;
        let _ = timeout_at(by.connections, async { tokio::join!(broker.close(), store.close()) }).await;
        left.tell(began.elapsed());
        outcome
    }
}

/// What happens once the database answers.
struct Start {
    deps: ops::Deps,
    callers: Callers,
    ops: Ops,
    /// Ends before the intake does.
    doors: (CancellationToken, Tasks),
    worker_id: String,
    eager: Eager,
    duties: Tasks,
    stop: CancellationToken,
    ready: watch::Sender<bool>,
}

impl Start {
    /// The worker, unless it is switched off or the service stops before it came to that.
    async fn run(self, cancelled: CancellationToken) -> Result<Option<Worker>, Error> {
        let Some(migrated) = cancelled.run_until_cancelled(migrate(&self.deps.store, &self.deps.config)).await else {
            return Ok(None);
        };
        migrated?;
        // Best before the first job is asked for, and before the consumers are made; the duty goes on trying.
        let _ = cancelled.run_until_cancelled(background::types::refresh(&self.deps)).await;
        // So that whoever is told that all is ready finds the streams. A broker that is away is not waited for: the duty
        // makes them when it is back.
        let topology = background::Topology::new(self.deps.clone());
        let made = async {
            while topology.run_once().await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if cancelled.run_until_cancelled(tokio::time::timeout(BROKER, made)).await.is_none() {
            return Ok(None);
        }
        background::start(&self.deps, &self.stop, &self.duties);
        if self.deps.config.rpc.enabled {
            inbox::start(&self.ops, &self.doors.1).await?;
        }
        if !self.deps.config.worker.enabled {
            self.ready.send_replace(true);
            return Ok(None);
        }
        self.callers.replies().listen(&self.stop, &self.duties).await?;
        let (stop, tasks) = &self.doors;
        late::listen(&self.ops, &self.worker_id, self.callers.replies(), stop, tasks).await?;
        let deps = worker::Deps {
            id: self.worker_id,
            store: self.deps.store.clone(),
            broker: self.deps.broker.clone(),
            config: self.deps.config.clone(),
            types: self.deps.types.clone(),
            relay: self.deps.relay.clone(),
            eager: self.eager,
            supervisor: self.duties.supervisor().clone(),
        };
        let Some(worker) = cancelled.run_until_cancelled(Worker::start(deps)).await else {
            return Ok(None);
        };
        let worker = worker?;
        self.ready.send_replace(true);
        Ok(Some(worker))
    }
}

/// Brings the schema up to date, however long the database stays away.
async fn migrate(store: &Store, config: &Config) -> Result<(), Error> {
    loop {
        match store.migrate(&config.database.schema).await {
            Ok(()) => return Ok(()),
            Err(e) if e.is_transient() => {
                store.tell(&e);
                tokio::time::sleep(TRY_AGAIN).await;
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Runs until SIGTERM or Ctrl-C; a second one cuts the drain short.
///
/// # Errors
/// What kept the service from starting.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let service = Service::start(config).await?;
    let mut signals = Signals::new()?;
    tokio::select! {
        _ = signals.next() => tracing::info!("stopping: running jobs may finish; once more to hurry"),
        _ = service.failed() => {}
    }
    service.stop(signals.hurry()).await?;
    Ok(())
}

/// SIGINT and SIGTERM.
pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// # Errors
    /// The operating system refuses.
    pub fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Returns at the next of them.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// A token that the next of them cancels.
    pub fn hurry(mut self) -> CancellationToken {
        let token = CancellationToken::new();
        let hurry = token.clone();
        supervise::spawn("second signal", async move {
            self.next().await;
            hurry.cancel();
        });
        token
    }
}
