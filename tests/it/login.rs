//! The way to NATS: what is renewed in files is used at the next connect, and what goes wrong is told with its reason.

use std::{path::PathBuf, time::Duration};

use queue_service::{config::Config, dev::postgres::free_port, service::Service};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    certs::Authority,
    child::Program,
    harness::{Place, until},
    own::OwnNats,
};

const JETSTREAM: &str = r#"jetstream { store_dir: "{store}", max_file_store: 2GB, max_memory_store: 16MB }"#;

/// A service whose server is the test's own.
struct Site {
    place: Place,
    nats: OwnNats,
    folder: tempfile::TempDir,
}

impl Site {
    /// With a server that runs with these further settings.
    async fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut site = Self { place: Place::new().await, nats: OwnNats::new(folder.path(), "own", ""), folder };
        site.place.config.nats.url = site.nats.url();
        site.server(more).await;
        site
    }

    /// Stops the server and starts it with other further settings.
    async fn server(&mut self, more: &str) {
        self.nats.stop().await;
        self.nats.configure("own", &format!("{JETSTREAM}\n{more}"));
        self.nats.start().await;
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    async fn service(&self) -> Service {
        let service = Service::start(self.place.config.clone()).await.unwrap();
        until(|| async { is_connected(&service).await.then_some(()) }).await;
        service
    }
}

async fn health(service: &Service) -> Value {
    let url = format!("http://{}/health", service.http_address().unwrap());
    reqwest::get(url).await.unwrap().json().await.unwrap()
}

async fn is_connected(service: &Service) -> bool {
    let health = health(service).await;
    health["checks"]["nats"]["status"] == "ok" && health["checks"]["jetstream"]["status"] == "ok"
}

/// Returns when the service has lost its connection and says this of the reason.
async fn says(service: &Service, words: &str) {
    until(|| async {
        let detail = health(service).await["checks"]["nats"]["detail"].as_str().unwrap().to_owned();
        detail.contains(words).then_some(())
    })
    .await;
}

async fn stop(service: Service) {
    service.stop(CancellationToken::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_token_is_used_at_the_next_connect() {
    let mut site = Site::new("authorization { token: first }").await;
    site.place.config.nats.token_file = Some(site.file("token", "first\n"));
    let service = site.service().await;
    site.server("authorization { token: second }").await;
    says(&service, "does not let us in").await;
    site.file("token", "second\n");
    until(|| async { is_connected(&service).await.then_some(()) }).await;
    stop(service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_password_is_used_at_the_next_connect() {
    let mut site = Site::new("authorization { user: me, password: first }").await;
    site.place.config.nats.url = site.nats.url().replace("//", "//me@");
    site.place.config.nats.password_file = Some(site.file("password", "first"));
    let service = site.service().await;
    site.server("authorization { user: me, password: second }").await;
    says(&service, "does not let us in").await;
    std::fs::remove_file(site.folder.path().join("password")).unwrap();
    says(&service, "nats.password_file").await;
    site.file("password", "second");
    until(|| async { is_connected(&service).await.then_some(()) }).await;
    stop(service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_expire_are_replaced_by_those_in_the_file() {
    let (operator, account, system) =
        (nkeys::KeyPair::new_operator(), nkeys::KeyPair::new_account(), nkeys::KeyPair::new_account());
    let no_limits = |disk: i64| {
        let limits = json!({"subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1,
            "wildcards": true, "mem_storage": disk, "disk_storage": disk, "streams": disk, "consumer": disk});
        json!({"type": "account", "version": 2, "limits": limits})
    };
    let more = format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}",
        jwt(&operator, &operator, "operator", None, json!({"type": "operator", "version": 2})),
        system.public_key(),
        account.public_key(),
        jwt(&operator, &account, "account", None, no_limits(-1)),
        system.public_key(),
        jwt(&operator, &system, "system", None, no_limits(0)),
    );
    let user = nkeys::KeyPair::new_user();
    let creds = |expires: Option<i64>| {
        let all = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1});
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            jwt(&account, &user, "user", expires, all),
            user.seed().unwrap()
        )
    };
    let mut site = Site::new(&more).await;
    let soon = chrono::Utc::now().timestamp() + 4;
    site.place.config.nats.creds = Some(site.file("creds", &creds(Some(soon))));
    let service = site.service().await;
    says(&service, "does not let us in").await;
    site.file("creds", &creds(None));
    until(|| async { is_connected(&service).await.then_some(()) }).await;
    stop(service).await;
}

/// A token of NATS. Source: github.com/nats-io/jwt.
fn jwt(issuer: &nkeys::KeyPair, subject: &nkeys::KeyPair, name: &str, expires: Option<i64>, nats: Value) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
    let mut claims = json!({"jti": uuid::Uuid::now_v7(), "iat": chrono::Utc::now().timestamp(), "name": name,
        "iss": issuer.public_key(), "sub": subject.public_key(), "nats": nats});
    if let Some(expires) = expires {
        claims["exp"] = expires.into();
    }
    let part = |value: &Value| BASE64.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), part(&claims));
    let signature = BASE64.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

fn tls(site: &Site, authority: &Authority, name: &str) -> String {
    let (folder, host) = (site.folder.path(), "127.0.0.1");
    authority.write(&folder.join(format!("{name}-ca.pem")));
    let (cert, key) = authority.issue_for(folder, name, host);
    format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true }}",
        cert.display(),
        key.display(),
        folder.join(format!("{name}-ca.pem")).display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificates_are_used_at_the_next_connect() {
    let mut site = Site::new("").await;
    let (first, second) = (Authority::new(), Authority::new());
    let settings = tls(&site, &first, "server");
    site.server(&settings).await;
    let folder = site.folder.path().to_owned();
    first.write(&folder.join("ca.pem"));
    let (cert, key) = first.issue(&folder, "client");
    let nats = &mut site.place.config.nats;
    (nats.tls_ca, nats.tls_cert, nats.tls_key) = (Some(folder.join("ca.pem")), Some(cert), Some(key));
    let service = site.service().await;
    let settings = tls(&site, &second, "server");
    site.server(&settings).await;
    says(&service, "UnknownIssuer (the server's certificate").await;
    second.write(&folder.join("ca.pem"));
    second.issue(&folder, "client");
    until(|| async { is_connected(&service).await.then_some(()) }).await;
    stop(service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_secure_connection_is_told_with_its_cause() {
    let mut site = Site::new("").await;
    let (ours, other) = (Authority::new(), Authority::new());
    let folder = site.folder.path().to_owned();
    let settings = tls(&site, &ours, "server");
    site.server(&settings).await;
    other.write(&folder.join("ca.pem"));
    let (cert, key) = ours.issue(&folder, "client");
    let (_, another_key) = ours.issue(&folder, "another");
    let base = site.place.config.clone();

    let with = |change: &dyn Fn(&mut Config)| {
        let mut config = base.clone();
        change(&mut config);
        config
    };
    // Refused at the start.
    for (config, words) in [
        (with(&|c| c.nats.tls_cert = Some(cert.clone())), "nats.tls_cert and nats.tls_key go together"),
        (with(&|c| c.nats.tls_key = Some(key.clone())), "nats.tls_cert and nats.tls_key go together"),
        (with(&|c| c.nats.tls_ca = Some(folder.join("none.pem"))), "nats.tls_ca can't be used"),
        (with(&|c| c.nats.tls_ca = Some(key.clone())), "no certificate in it"),
        (
            with(&|c| (c.nats.tls_cert, c.nats.tls_key) = (Some(cert.clone()), Some(another_key.clone()))),
            "nats.tls_key can't be used",
        ),
    ] {
        let mut program = Program::start(&["serve"], Some(&config));
        let status = program.ended().await;
        assert!(!status.success() && program.log().contains(words), "{words}:\n{}", program.log());
    }
    // Told while it is tried again.
    let server = format!("nats://127.0.0.1:{}", site.nats.port());
    for (config, words) in [
        (with(&|c| c.nats.tls_ca = Some(folder.join("ca.pem"))), "UnknownIssuer (the server's certificate"),
        (
            with(&|c| c.nats.tls_ca = Some(folder.join("server-ca.pem"))),
            "wants a client certificate: set nats.tls_cert",
        ),
    ] {
        let program = Program::start(&["serve"], Some(&config));
        let line = program.logged("no connection to NATS, trying again").await;
        assert!(line.contains(&server) && line.contains(words), "{words}: {line}");
        drop(program);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_named_once_with_the_reason() {
    let mut place = Place::new().await;
    let folder = tempfile::tempdir().unwrap();
    let mut nats = OwnNats::new(folder.path(), "own", "");
    place.config.nats.url = nats.url().replace("//", "//me:canary@") + ",nats://no-such-host.invalid";
    place.config.log.filter = "queue_service=debug".into();
    let program = Program::start(&["serve"], Some(&place.config));
    // Both connections have tried it several times.
    until(|| async { (program.log().matches("no connection to NATS (").count() > 8).then_some(()) }).await;
    let log = program.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains(" WARN ") && line.contains("NATS")).collect();
    assert_eq!(told.len(), 1, "{log}");
    assert!(told[0].contains(&format!("{}: Connection refused", nats.url())), "{}", told[0]);
    assert!(told[0].contains("nats://no-such-host.invalid:4222: "), "{}", told[0]);
    assert!(!log.contains("canary") && !log.contains("async_nats"), "{log}");
    nats.start().await;
    program.logged("connected to NATS").await;
    program.logged("worker started").await;
    nats.stop().await;
    program.logged("the connection to NATS is lost").await;
    nats.start().await;
    program.logged("connected to NATS again after").await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_of_ipv6_and_a_list_of_servers_are_taken() {
    let site = Site::new("").await;
    let dead = free_port().unwrap();
    let six = OwnNats::new(&site.folder.path().join("six"), "six", "");
    // The later line counts.
    six.configure("six", &format!("{JETSTREAM}\nlisten: \"[::1]:{}\"", six.port()));
    let mut six = six;
    six.start_at("::1").await;
    for url in [format!("nats://[::1]:{}", six.port()), format!("127.0.0.1:{dead}, {}", site.nats.url())] {
        let mut config = site.place.config.clone();
        config.nats.url = url;
        let service = Service::start(config).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(60), service.ready()).await.unwrap());
        until(|| async { is_connected(&service).await.then_some(()) }).await;
        stop(service).await;
    }
}
