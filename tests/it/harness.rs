//! Starts Postgres and nats-server once for all tests, through the code of `queue-service dev`, and a service per test.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use queue_service::{
    broker::Broker,
    config::Config,
    dev::{Servers, nats::PortChoice, postgres::Durability},
    handlers::{Registry, clients::install_crypto, registry},
    service::Service,
    store::Store,
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::probe::{Journal, Probe};

/// Longest wait for anything that a test expects. Generous, since nothing is asserted about it: machines are busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

static SERVERS: OnceCell<Servers> = OnceCell::const_new();
static NEXT: AtomicU32 = AtomicU32::new(0);
const TEMPLATE: &str = "template_queue";

/// The servers that all tests share. They end with this process.
pub async fn servers() -> &'static Servers {
    SERVERS.get_or_init(start_servers).await
}

async fn start_servers() -> Servers {
    install_crypto();
    // Our own folder for a process that can't clean up behind itself: the next run removes what is left.
    let parent = std::env::temp_dir();
    for entry in std::fs::read_dir(&parent).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("queue-service-test-").map(str::to_owned);
        if owner.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let folder = parent.join(format!("queue-service-test-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let servers = Servers::start(&folder, Durability::ThrowAway, PortChoice::Any).await.unwrap();
    servers.postgres.create_database(TEMPLATE).await.unwrap();
    let mut config = Config::default();
    config.database.url = servers.postgres.url(TEMPLATE);
    let store = Store::open(&config.database).unwrap();
    store.migrate(&config.database.schema).await.unwrap();
    store.close().await;
    servers
}

/// A place of its own for one test: a database, a prefix, and settings with short periods.
pub struct Place {
    pub config: Config,
    pub journal: Journal,
}

impl Place {
    pub async fn new() -> Self {
        let servers = servers().await;
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        let name = format!("t{n}");
        servers.postgres.clone_database(TEMPLATE, &name).await.unwrap();
        let mut config = Config::default();
        config.database.url = servers.postgres.url(&name);
        config.database.max_connections = 6;
        config.nats.url = servers.nats.url();
        config.nats.prefix = name;
        // The server sets it aside for each test until the end, out of 8 GB: room for five hundred tests.
        config.nats.store = bytesize::ByteSize::mib(16);
        config.http.bind = ([127, 0, 0, 1], 0).into();
        config.worker.lease = Duration::from_millis(1200);
        config.worker.drain = Duration::from_secs(5);
        config.worker.cancel_grace = Duration::from_millis(500);
        config.retry.base = Duration::from_millis(50);
        config.retry.max = Duration::from_millis(400);
        config.background.sweep = Duration::from_millis(500);
        config.background.overdue = Duration::from_millis(700);
        config.background.publish_grace = Duration::from_millis(400);
        config.background.ack_wait = Duration::from_secs(1);
        Self { config, journal: Journal::default() }
    }

    /// Starts a service here; several may run at once, as replicas.
    pub async fn start(&self) -> Running {
        let probe = Probe { journal: self.journal.clone() };
        self.start_with(|registry| Ok(registry.with(probe)?)).await
    }

    /// As [`Place::start`], with other job types.
    pub async fn start_with(&self, add_types: impl FnOnce(Registry) -> Result<Registry, registry::Error>) -> Running {
        let routes = axum::Router::new();
        let service = Service::start_with(self.config.clone(), routes, add_types).await.unwrap();
        assert!(tokio::time::timeout(PATIENCE, service.ready()).await.unwrap(), "the service did not start");
        self.client_of(service).await
    }

    /// Starts a service whose database does not answer.
    pub async fn start_without_database(&self) -> Running {
        let mut config = self.config.clone();
        // Bound and never listened to, so that nobody else gets the port.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        config.database.url = format!("postgres://nobody@{}/nothing", socket.local_addr().unwrap());
        let service = Service::start(config).await.unwrap();
        self.client_of(service).await
    }

    async fn client_of(&self, service: Service) -> Running {
        let options = async_nats::ConnectOptions::new().request_timeout(Some(PATIENCE));
        let servers: Vec<&str> = self.config.nats.url.split(',').collect();
        let nats = options.connect(servers).await.unwrap();
        Running { service, nats, config: self.config.clone() }
    }

    /// A store on this test's database, for tests that are a worker or an operator themselves.
    pub async fn store(&self) -> Store {
        let store = Store::open(&self.config.database).unwrap();
        store.migrate(&self.config.database.schema).await.unwrap();
        store
    }

    /// A connection to this test's part of the broker, for tests that are a worker themselves.
    pub async fn broker(&self) -> Broker {
        let broker = Broker::connect(&self.config.nats, &self.config.background).await.unwrap();
        until(async || broker.is_connected().then_some(())).await;
        broker
    }

    /// A connection to this test's database, with its schema on the search path.
    pub async fn database(&self) -> sqlx::PgPool {
        let options: sqlx::postgres::PgConnectOptions = self.config.database.url.parse().unwrap();
        let options = options.options([("search_path", self.config.database.schema.as_str())]);
        sqlx::postgres::PgPoolOptions::new().max_connections(3).connect_with(options).await.unwrap()
    }
}

/// A running service, and a client of it that knows nothing but NATS.
pub struct Running {
    pub service: Service,
    pub nats: async_nats::Client,
    pub config: Config,
}

/// What the service answered.
#[derive(Debug)]
pub struct Answer {
    pub headers: Option<async_nats::HeaderMap>,
    pub body: Value,
}

impl Answer {
    /// The code of a refusal; `None` for success.
    pub fn code(&self) -> Option<&str> {
        self.headers.as_ref()?.get("Nats-Service-Error-Code")?;
        self.body["code"].as_str()
    }
}

/// A place with one service running in it: what most tests want.
pub async fn start() -> (Place, Running) {
    let place = Place::new().await;
    let running = place.start().await;
    (place, running)
}

impl Running {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.service.http_address().unwrap())
    }

    pub fn subject(&self, rest: &str) -> String {
        format!("{}.{rest}", self.config.nats.prefix)
    }

    /// Asks by RPC; any bytes will do as a request.
    pub async fn ask(&self, verb: &str, body: impl Into<Vec<u8>>) -> Answer {
        // The client's own limit of ten seconds is shorter than a wait.
        let request = async_nats::Request::new().payload(body.into().into()).timeout(Some(PATIENCE * 2));
        let message = self.nats.send_request(self.subject(verb), request).await.expect("no answer in time");
        let body = serde_json::from_slice(&message.payload).expect("the answer is no JSON");
        Answer { headers: message.headers, body }
    }

    /// Asks for what must succeed.
    pub async fn call(&self, verb: &str, body: Value) -> Value {
        let answer = self.ask(verb, body.to_string()).await;
        assert_eq!(answer.code(), None, "{verb} {body} was refused: {}", answer.body);
        answer.body
    }

    /// Enqueues a job of the test's own type, and gives its id.
    pub async fn probe(&self, payload: Value) -> String {
        self.enqueue(json!({"type": "probe", "payload": payload})).await
    }

    pub async fn enqueue(&self, request: Value) -> String {
        self.call("enqueue", request).await["jobId"].as_str().unwrap().to_owned()
    }

    /// Enqueues many, a thousand a request, and gives their ids.
    pub async fn enqueue_many(&self, jobs: Vec<Value>) -> Vec<String> {
        let mut ids = Vec::new();
        for part in jobs.chunks(1000) {
            let reply = self.call("enqueueMany", json!({"jobs": part})).await;
            let results = reply["results"].as_array().unwrap();
            ids.extend(
                results.iter().map(|result| result["jobId"].as_str().unwrap_or_else(|| panic!("{result}")).to_owned()),
            );
        }
        ids
    }

    pub async fn job(&self, id: &str) -> Value {
        self.call("getJob", json!({"jobId": id})).await
    }

    /// Waits until the job is over, and gives it.
    pub async fn finished(&self, id: &str) -> Value {
        self.call("waitJob", json!({"jobId": id, "timeoutMs": PATIENCE.as_millis() as u64})).await
    }

    /// Waits until the job has a status, and gives it.
    pub async fn until_status(&self, id: &str, status: &str) -> Value {
        until(|| async { Some(self.job(id).await).filter(|job| job["status"] == status) }).await
    }

    /// Everything that is published below the prefix on `rest` from now on.
    pub async fn listen(&self, rest: &str) -> Listener {
        Listener::new(&self.nats, self.subject(rest)).await
    }

    /// A stream of this test's, by its plain name.
    pub async fn stream(&self, name: &str) -> async_nats::jetstream::stream::Stream {
        let name = format!("{}-{name}", self.config.nats.prefix);
        async_nats::jetstream::new(self.nats.clone()).get_stream(name).await.unwrap()
    }

    /// How many wake-ups the broker has ever had.
    pub async fn published(&self) -> u64 {
        self.stream("background-jobs").await.info().await.unwrap().state.last_sequence
    }

    pub async fn stop(self) {
        self.service.stop(CancellationToken::new()).await.unwrap();
    }
}

/// Messages that come in.
pub struct Listener(async_nats::Subscriber);

impl Listener {
    pub async fn new(nats: &async_nats::Client, subject: String) -> Self {
        let messages = nats.subscribe(subject).await.unwrap();
        nats.flush().await.unwrap();
        Self(messages)
    }

    pub async fn next(&mut self) -> (String, Value) {
        let message = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("no message in time").unwrap();
        (message.subject.to_string(), serde_json::from_slice(&message.payload).expect("the message is no JSON"))
    }

    /// All up to the first whose `state` is `last`, which is the last one given.
    pub async fn until_state(&mut self, last: &str) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let (_, event) = self.next().await;
            let is_last = event["state"] == last;
            events.push(event);
            if is_last {
                return events;
            }
        }
    }
}

/// A time as the service writes it.
pub fn time(value: &Value) -> chrono::DateTime<chrono::Utc> {
    value.as_str().expect("a time").parse().expect("a time of RFC 3339")
}

/// A duration in milliseconds between two times of the service.
pub fn millis_between(from: &Value, to: &Value) -> f64 {
    (time(to) - time(from)).num_microseconds().unwrap() as f64 / 1000.0
}

/// Asks again until there is an answer; what no event tells has to be looked for.
pub async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("what was waited for did not come")
}
