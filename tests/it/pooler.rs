//! The way to Postgres: through a pooler, to addresses of any form, to one of several servers; what can't be used is
//! refused at the start, and what is away is named once with the reason.

use std::{path::PathBuf, process::Stdio, time::Duration};

use queue_service::{
    dev::postgres::{free_port, server_user},
    service::Service,
};
use serde_json::json;
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::{net::TcpStream, process::Child};

use crate::{
    child::Program,
    harness::{Place, Running, servers, until},
    own::{OwnPostgres, Places, open_folder},
    proxy::{Mode, Proxy},
};

/// A pgbouncer before the Postgres of all tests.
struct Pooler {
    _child: Child,
    _folder: tempfile::TempDir,
    port: u16,
}

impl Pooler {
    /// `more`: further lines of its configuration.
    async fn start(mode: &str, more: &str) -> Self {
        let (folder, port) = (open_folder(), free_port().unwrap());
        let postgres = servers().await.postgres.url("postgres");
        let password = postgres.split([':', '@']).nth(2).unwrap().to_owned();
        let server: PgConnectOptions = postgres.parse().unwrap();
        let config = folder.path().join("pgbouncer.ini");
        let databases = format!("* = host=127.0.0.1 port={} user=queue password={password}", server.get_port());
        let settings = format!(
            "[databases]\n{databases}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\n\
             unix_socket_dir =\npool_mode = {mode}\n{more}\n"
        );
        std::fs::write(&config, settings).unwrap();
        let mut command = tokio::process::Command::new(pgbouncer());
        if let Some(user) = server_user().unwrap() {
            command.args(["-u", &user.name]);
        }
        let command = command.arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.kill_on_drop(true).spawn().unwrap();
        until(async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
        Self { _child: child, _folder: folder, port }
    }

    /// A place on an empty database, behind this.
    async fn place(&self) -> Place {
        let mut place = Place::new().await;
        let name = format!("{}_pooled", place.config.nats.prefix);
        servers().await.postgres.create_database(&name).await.unwrap();
        place.config.database.url = format!("postgres://queue:canary@127.0.0.1:{}/{name}", self.port);
        place
    }
}

fn pgbouncer() -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&folders).collect();
    folders.push("/usr/sbin".into());
    let found = folders.iter().map(|folder| folder.join("pgbouncer")).find(|path| path.exists());
    found.expect("pgbouncer is missing: run script/bootstrap --test")
}

/// How many tables a schema of the place's database has, asked without the pooler.
async fn tables(place: &Place, schema: &str) -> i64 {
    let name = place.config.database.url.rsplit('/').next().unwrap();
    let mut connection = PgConnection::connect(&servers().await.postgres.url(name)).await.unwrap();
    let count = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = $1").bind(schema);
    let n = count.fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    n
}

async fn a_job_runs(service: &Running) {
    let id = service.probe(json!({})).await;
    assert_eq!(service.finished(&id).await["status"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_with_sessions_all_is_in_its_schema() {
    // As it is installed, and as it is often set up: then what it does not know is dropped without a word.
    for more in ["", "ignore_startup_parameters = extra_float_digits,options,search_path"] {
        let pooler = Pooler::start("session", more).await;
        let place = pooler.place().await;
        let service = place.start().await;
        a_job_runs(&service).await;
        service.call("getStats", json!({})).await;
        assert!(tables(&place, "queue").await > 20);
        assert_eq!(tables(&place, "public").await, 0, "{more}");
        // Told by the database at the commit.
        let name = place.config.database.url.rsplit('/').next().unwrap();
        let mut connection = PgConnection::connect(&servers().await.postgres.url(name)).await.unwrap();
        let enqueue = sqlx::query_scalar("SELECT queue.enqueue('probe', '{}')::text");
        let id: String = enqueue.fetch_one(&mut connection).await.unwrap();
        assert_eq!(service.finished(&id).await["status"], "completed");
        connection.close().await.unwrap();
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_shares_sessions_is_refused_at_the_start() {
    for mode in ["transaction", "statement"] {
        let pooler = Pooler::start(mode, "ignore_startup_parameters = extra_float_digits,options").await;
        let place = pooler.place().await;
        for command in ["serve", "migrate"] {
            let mut program = Program::start(&[command], Some(&place.config));
            let status = program.ended().await;
            let log = program.log();
            assert!(!status.success(), "{log}");
            assert!(log.contains("pool_mode") && log.contains(&format!("127.0.0.1:{}", pooler.port)), "{log}");
            assert!(!log.contains("canary"), "{log}");
        }
        assert_eq!(tables(&place, "public").await + tables(&place, "queue").await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_ipv6_and_hosts_among_the_parameters_are_taken() {
    let folder = open_folder();
    let mut postgres = OwnPostgres::new(folder.path(), &["listen_addresses=127.0.0.1,::1"], Places::Together).await;
    postgres.start().await;
    postgres.run("CREATE DATABASE queue").await;
    let port = postgres.port;
    let mut place = Place::new().await;
    for url in [
        format!("postgres://queue@[::1]:{port}/queue"),
        format!("postgresql://queue@/queue?host=::1&port={port}"),
        format!("postgres://queue@localhost:1/queue?hostaddr=127.0.0.1&port={port}&connect_timeout=5"),
    ] {
        place.config.database.url = url;
        let service = place.start().await;
        a_job_runs(&service).await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_servers_the_one_that_takes_writes_is_used() {
    let folder = open_folder();
    let mut primary = OwnPostgres::new(&folder.path().join("primary"), &[], Places::Together).await;
    primary.start().await;
    primary.run("CREATE DATABASE queue").await;
    let mut standby = OwnPostgres::standby(&folder.path().join("standby"), primary.address()).await;
    standby.start().await;
    let (one, other) = (Proxy::start(primary.address()).await, Proxy::start(primary.address()).await);
    let hosts = [free_port().unwrap(), standby.port, one.address.port(), other.address.port()];
    let hosts = hosts.map(|port| format!("127.0.0.1:{port}")).join(",");
    let mut place = Place::new().await;
    place.config.database.url = format!("postgres://queue@{hosts}/queue?target_session_attrs=read-write");
    place.config.worker.lease = Duration::from_secs(30);
    let service = place.start().await;
    a_job_runs(&service).await;
    one.set(Mode::Cut);
    // Callers come again, as they are told to.
    let id = until(async || {
        let answer = service.ask("enqueue", json!({"type": "probe", "payload": {}}).to_string()).await;
        answer.body["jobId"].as_str().map(str::to_owned)
    })
    .await;
    until(async || {
        let answer = service.ask("getJob", json!({"jobId": id}).to_string()).await;
        (answer.body["status"] == "completed").then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_url_that_can_not_be_used_is_refused_without_its_password() {
    let mut place = Place::new().await;
    for (url, words) in [
        ("mysql://me:canary@h/db", "postgres://"),
        ("postgres://me:canary@h:99999/db", "1 to 65535"),
        ("postgres://me:canary@::1/db", "brackets"),
        ("postgres://me:canary@a,b/db?target_session_attrs=standby", "jobs are written"),
    ] {
        place.config.database.url = url.into();
        let mut program = Program::start(&["serve"], Some(&place.config));
        assert!(!program.ended().await.success(), "{url}");
        let log = program.log();
        assert!(log.contains("database.url") && log.contains(words) && !log.contains("canary"), "{url}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_named_once_with_the_reason() {
    let folder = open_folder();
    let mut postgres = OwnPostgres::new(folder.path(), &[], Places::Together).await;
    let mut place = Place::new().await;
    place.config.database.url = format!("postgres://queue:canary@127.0.0.1:{}/queue", postgres.port);
    place.config.log.filter = "queue_service=debug".into();
    let (server, refused) = (format!("127.0.0.1:{}", postgres.port), "Connection refused");

    let mut migrate = Program::start(&["migrate"], Some(&place.config));
    assert!(!migrate.ended().await.success());
    let log = migrate.log();
    assert!(log.contains(&server) && log.matches(refused).count() == 1 && !log.contains("canary"), "{log}");

    let program = Program::start(&["serve"], Some(&place.config));
    until(|| async { (program.log().matches(refused).count() > 6).then_some(()) }).await;
    let told = |log: &str| {
        let lines = log.lines().filter(|line| line.contains(" WARN ") && !line.contains("NATS"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let lines = told(&program.log());
    assert_eq!(lines.len(), 1, "{}", program.log());
    assert!(lines[0].contains(&server) && lines[0].contains(refused), "{}", lines[0]);
    let service = Service::start(place.config.clone()).await.unwrap();
    let url = format!("http://{}/health", service.http_address().unwrap());
    let health: serde_json::Value = until(async || {
        let health: serde_json::Value = reqwest::get(&url).await.ok()?.json().await.ok()?;
        let detail = health["checks"]["postgres"]["detail"].as_str()?.to_owned();
        detail.contains(refused).then_some(health)
    })
    .await;
    let detail = health["checks"]["postgres"]["detail"].as_str().unwrap();
    assert!(detail.contains(&server) && !detail.contains("canary"), "{detail}");
    service.stop(tokio_util::sync::CancellationToken::new()).await.unwrap();

    postgres.start().await;
    postgres.run("CREATE DATABASE queue").await;
    program.logged("worker started").await;
    let before = told(&program.log()).len();
    postgres.kill().await;
    until(|| async { (program.log().matches(refused).count() > 20).then_some(()) }).await;
    let log = program.log();
    let since: Vec<String> = told(&log).split_off(before);
    let naming = since.iter().filter(|line| line.contains(&server) && line.contains(refused)).count();
    assert_eq!(naming, 1, "{}", since.join("\n"));
    assert!(!log.contains("canary"), "{log}");
    postgres.start().await;
    program.logged("the database answers again after").await;
    program.stop().await;
}
