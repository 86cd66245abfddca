//! A private Postgres: a cluster in one folder, on a free port of the loopback.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use sqlx::{Connection, PgConnection};

use super::process::{Kept, Program, User, end_leftover, find, is_program};

/// Longest start, which includes the recovery after a crash.
const START: Duration = Duration::from_secs(60);
/// Longest wait for an orderly end.
const STOP: Duration = Duration::from_secs(20);
const PASSWORD_FILE: &str = "password";

/// Whether data must survive a power cut. Only throw-away servers do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Postgres's own defaults.
    Durable,
    ThrowAway,
}

/// A running cluster; it ends when this is dropped.
pub struct Postgres {
    kept: Kept,
    port: u16,
    password: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Postgres is not installed: run script/bootstrap, or install the package that has `initdb` and `postgres`")]
    Missing,
    #[error("Postgres refuses to run as root, and there is neither a user 'postgres' nor 'nobody' to run it as")]
    NoUser,
    #[error("could not prepare the folder {}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("initdb could not make a cluster:\n{0}")]
    Initdb(String),
    #[error("Postgres did not start; its log is {}", .0.display())]
    Start(PathBuf),
    #[error("could not make the database")]
    Database(#[source] sqlx::Error),
}

impl Postgres {
    /// Makes the cluster in `folder` when there is none, and starts it.
    ///
    /// # Errors
    /// Postgres is missing, or does not start.
    pub async fn start(folder: &Path, durability: Durability) -> Result<Self, Error> {
        let bin = find_bin().ok_or(Error::Missing)?;
        let user = server_user()?;
        let failed = |source| Error::Folder { path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let data = folder.join("data");
        let password = password(folder).map_err(failed)?;
        if !data.join("PG_VERSION").exists() {
            initdb(&bin, folder, &data, user.as_ref())?;
        }
        let mark = data.display().to_string();
        end_leftover(&data.join("postmaster.pid"), &mark, STOP);
        let log = folder.join("postgres.log");
        // A port that is free now may be taken a moment later.
        for _ in 0..5 {
            let port = free_port().map_err(failed)?;
            let mut arguments = vec!["-D".to_owned(), mark.clone()];
            let settings = settings(port, durability);
            arguments.extend(settings.iter().flat_map(|setting| ["-c".to_owned(), setting.clone()]));
            let program = Program {
                name: "postgres",
                path: bin.join("postgres"),
                arguments,
                log: log.clone(),
                user: user.clone(),
                // A fast shutdown: connections are ended, transactions rolled back.
                stop_signal: Signal::INT,
            };
            let kept = Kept::start(program).map_err(failed)?;
            let postgres = Self { kept, port, password: password.clone() };
            if postgres.answers().await {
                postgres.create_database("queue").await?;
                return Ok(postgres);
            }
        }
        Err(Error::Start(log))
    }

    /// Of the database `name`, for the superuser of this cluster.
    pub fn url(&self, name: &str) -> String {
        format!("postgres://queue:{}@127.0.0.1:{}/{name}", self.password, self.port)
    }

    /// Its main process.
    pub fn pid(&self) -> Option<u32> {
        self.kept.pid()
    }

    /// Ends it in good order.
    pub fn stop(mut self) {
        self.kept.stop(STOP);
    }

    /// Makes a database unless there is one of that name.
    ///
    /// # Errors
    /// What Postgres says.
    pub async fn create_database(&self, name: &str) -> Result<(), Error> {
        match self.admin(format!("CREATE DATABASE \"{name}\"")).await {
            // duplicate_database
            Err(e) if e.as_database_error().and_then(|e| e.code()).as_deref() == Some("42P04") => Ok(()),
            made => made.map_err(Error::Database),
        }
    }

    /// Makes the database `name` as a copy of `template`, to which nobody may be connected.
    ///
    /// # Errors
    /// What Postgres says.
    pub async fn clone_database(&self, template: &str, name: &str) -> Result<(), Error> {
        self.admin(format!("CREATE DATABASE \"{name}\" TEMPLATE \"{template}\"")).await.map_err(Error::Database)
    }

    async fn admin(&self, sql: String) -> Result<(), sqlx::Error> {
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await;
        let _ = connection.close().await;
        done.map(|_| ())
    }

    async fn answers(&self) -> bool {
        let began = Instant::now();
        while began.elapsed() < START && !self.kept.has_ended() {
            if let Ok(connection) = PgConnection::connect(&self.url("postgres")).await {
                let _ = connection.close().await;
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }
}

fn settings(port: u16, durability: Durability) -> Vec<String> {
    let mut settings = vec![
        format!("port={port}"),
        "listen_addresses=127.0.0.1".to_owned(),
        // Its usual folder belongs to a system's own Postgres.
        "unix_socket_directories=".to_owned(),
        "max_connections=400".to_owned(),
        "logging_collector=off".to_owned(),
    ];
    if durability == Durability::ThrowAway {
        settings.extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off"].map(str::to_owned));
    }
    settings
}

/// Where `initdb` and `postgres` are: Debian keeps them out of the PATH.
pub fn find_bin() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    versions.sort_by_key(|path| {
        let version = path.parent().and_then(|dir| dir.file_name()?.to_str()?.parse::<u32>().ok());
        std::cmp::Reverse(version.unwrap_or(0))
    });
    let on_path = find("initdb").and_then(|path| path.canonicalize().ok()?.parent().map(Path::to_owned));
    versions.into_iter().chain(on_path).find(|bin| is_program(&bin.join("initdb")) && is_program(&bin.join("postgres")))
}

/// Whom Postgres runs as; `None`: as we do.
///
/// # Errors
/// We are root, and there is nobody else.
pub fn server_user() -> Result<Option<User>, Error> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    ["postgres", "nobody"].iter().find_map(|name| user(&users, name)).map(Some).ok_or(Error::NoUser)
}

/// Source: passwd(5).
fn user(passwd: &str, name: &str) -> Option<User> {
    let fields: Vec<&str> =
        passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.first() == Some(&name))?;
    Some(User { name: name.to_owned(), uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
}

/// The superuser's password, made once per folder.
fn password(folder: &Path) -> std::io::Result<String> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let path = folder.join(PASSWORD_FILE);
    if let Ok(known) = std::fs::read_to_string(&path) {
        return Ok(known.trim().to_owned());
    }
    let password = format!("{:032x}", rand::random::<u128>());
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?.write_all(password.as_bytes())?;
    Ok(password)
}

fn initdb(bin: &Path, folder: &Path, data: &Path, user: Option<&User>) -> Result<(), Error> {
    let failed = |source| Error::Folder { path: folder.to_owned(), source };
    // What a first try that was cut off left behind.
    if data.exists() {
        std::fs::remove_dir_all(data).map_err(failed)?;
    }
    std::fs::create_dir(data).map_err(failed)?;
    let password_file = folder.join(PASSWORD_FILE);
    if let Some(user) = user {
        for path in [data, &password_file] {
            std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).map_err(failed)?;
        }
    }
    let program = Program {
        name: "initdb",
        path: bin.join("initdb"),
        arguments: vec![
            "-D".into(),
            data.display().to_string(),
            "--username=queue".into(),
            format!("--pwfile={}", password_file.display()),
            // Asked in the clear, on the loopback only; stored as a SCRAM hash.
            "--auth=password".into(),
            "--encoding=UTF8".into(),
            "--locale=C".into(),
            "--no-sync".into(),
        ],
        log: folder.join("postgres.log"),
        user: user.cloned(),
        stop_signal: Signal::INT,
    };
    let output = program.command(false).output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(Error::Initdb(said))
}

/// A port of the loopback that nobody listens on.
///
/// # Errors
/// There is none.
pub fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_in_the_password_file() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgres:x:105:114:PostgreSQL:/var/lib/postgresql:/bin/bash\n";
        let expected = User { name: "postgres".into(), uid: 105, gid: 114 };
        assert_eq!(user(passwd, "postgres"), Some(expected));
        assert_eq!(user(passwd, "post"), None);
    }
}
