//! The schema is brought up to date by many at once, with few rights, and behind those who hold its tables.

use std::{borrow::Cow, collections::HashSet};

use queue_service::{config::Config, store::Store};
use serde_json::json;
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool, SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};

use crate::{
    child::Program,
    harness::{Place, servers, until},
};

/// Migrations that a later version might have.
fn later(migrations: &[(&'static str, bool)]) -> Migrator {
    let made = migrations.iter().zip(9001..).map(|((sql, no_tx), version)| {
        Migration::new(version, Cow::Borrowed("later"), MigrationType::Simple, sql.into_sql_str(), *no_tx)
    });
    Migrator::with_migrations(made.collect())
}

/// A database of its own, without the schema; the superuser's connections to it.
async fn empty(place: &mut Place) -> PgPool {
    let postgres = &servers().await.postgres;
    let name = format!("{}_empty", place.config.nats.prefix);
    postgres.create_database(&name).await.unwrap();
    place.config.database.url = postgres.url(&name);
    PgPool::connect(&place.config.database.url).await.unwrap()
}

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
}

/// A user who may log in and nothing else, and the settings of who is this user.
async fn user(place: &Place, pool: &PgPool, name: &str) -> (String, Config) {
    let name = format!("{}_{name}", place.config.nats.prefix);
    run(pool, &format!("CREATE ROLE {name} LOGIN PASSWORD 'pw'")).await;
    let mut config = place.config.clone();
    let mut url: url::Url = config.database.url.parse().unwrap();
    url.set_username(&name).unwrap();
    url.set_password(Some("pw")).unwrap();
    config.database.url = url.into();
    (name, config)
}

async fn migrate(config: &Config) {
    let store = Store::open(&config.database).unwrap();
    store.migrate(&config.database.schema).await.unwrap_or_else(|e| panic!("{e:?}"));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_at_once_make_one_schema_every_time() {
    let mut place = Place::new().await;
    let pool = empty(&mut place).await;
    for round in 0..5 {
        let mut config = place.config.clone();
        config.database.schema = format!("round_{round}");
        let mut migrators = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let config = config.clone();
            migrators.spawn(async move { migrate(&config).await });
        }
        migrators.join_all().await;
        let sql = format!("SELECT count(*) FROM round_{round}._sqlx_migrations");
        let n: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&pool).await.unwrap();
        assert_eq!(n as usize, queue_service::store::MIGRATIONS.iter().count());
    }
    let sql = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    let n: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap();
    assert_eq!(n, 0, "things in the schema public");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_owns_the_schema_needs_no_right_on_the_database() {
    let mut place = Place::new().await;
    let pool = empty(&mut place).await;
    let (name, config) = user(&place, &pool, "owner").await;
    run(&pool, &format!("CREATE SCHEMA queue AUTHORIZATION {name}")).await;
    let mut migrator = Program::start(&["migrate"], Some(&config));
    assert!(migrator.ended().await.success(), "{}", migrator.log());
    place.config = config;
    let service = place.start().await;
    let id = service.probe(json!({})).await;
    assert_eq!(service.finished(&id).await["status"], "completed");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_is_told_with_the_statement_that_gives_it() {
    let mut place = Place::new().await;
    let pool = empty(&mut place).await;
    let (name, config) = user(&place, &pool, "nobody").await;
    let schema = format!("CREATE SCHEMA \"queue\" AUTHORIZATION \"{name}\"");
    let tables = format!("GRANT USAGE, CREATE ON SCHEMA \"queue\" TO \"{name}\"");
    for grant in [schema, tables] {
        for command in ["migrate", "serve"] {
            let mut program = Program::start(&[command], Some(&config));
            assert!(!program.ended().await.success(), "{}", program.log());
            let told = program.log();
            assert!(told.contains(&format!("the database user '{name}' may not")), "{told}");
            assert!(told.contains(&grant) && told.contains("'queue'"), "{told}");
        }
        // And it is the right statement.
        run(&pool, &grant).await;
        migrate(&config).await;
        run(&pool, "DROP SCHEMA queue CASCADE; CREATE SCHEMA queue").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_somebody_else_are_told_with_the_grant() {
    let mut place = Place::new().await;
    let pool = empty(&mut place).await;
    migrate(&place.config).await;
    let (name, config) = user(&place, &pool, "member").await;
    run(&pool, &format!("GRANT USAGE, CREATE ON SCHEMA queue TO {name}")).await;
    run(&pool, &format!("GRANT SELECT, INSERT, UPDATE ON queue._sqlx_migrations TO {name}")).await;
    let store = Store::open(&config.database).unwrap();
    let change = later(&[("ALTER TABLE jobs ADD COLUMN later text", false)]);
    let error = store.migrate_with("queue", &change).await.unwrap_err();
    let grant = format!("GRANT \"queue\" TO \"{name}\"");
    assert!(error.to_string().contains(&grant) && !error.is_transient(), "{error}");
    run(&pool, &grant).await;
    store.migrate_with("queue", &change).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_owns_nothing_is_enough_to_serve() {
    let mut place = Place::new().await;
    let pool = place.database().await;
    let (name, config) = user(&place, &pool, "app").await;
    let mut program = Program::start(&["serve"], Some(&config));
    assert!(!program.ended().await.success(), "{}", program.log());
    let told = program.log();
    assert!(told.contains(&format!("'{name}' may not use all of the schema 'queue'")), "{told}");
    let grants = told.split_once("run: ").unwrap().1.lines().next().unwrap().to_owned();
    // Whatever is still missing after a part of it, the whole is told.
    for grant in grants.split("; ") {
        let mut program = Program::start(&["serve"], Some(&config));
        assert!(!program.ended().await.success() && program.log().contains(&grants), "{}", program.log());
        run(&pool, grant).await;
    }
    let of_another_day =
        "DROP TABLE finished_completed_20991231, finished_failed_20991231, finished_cancelled_20991231";
    place.config = config;
    let service = place.start().await;
    let id = service.probe(json!({"fail": 1})).await;
    assert_eq!(service.finished(&id).await["status"], "completed");
    // Partitions are made as the owner's.
    let app = PgPool::connect(&place.config.database.url).await.unwrap();
    run(&app, "SELECT queue.make_finished_partitions('2099-12-31')").await;
    run(&pool, of_another_day).await;
    service.stop().await;
}

/// Somebody's transaction that has read these tables and goes on.
async fn report(place: &Place, sql: &'static str) -> PgConnection {
    let url = format!("{}?application_name=report", place.config.database.url);
    let mut report = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {sql}")))
        .execute(&mut report)
        .await
        .unwrap();
    report
}

/// Returns when the migration has begun to wait for a lock so many times.
async fn waited(pool: &PgPool, times: usize) {
    let sql = "SELECT waitstart::text FROM pg_locks JOIN pg_stat_activity USING (pid)
               WHERE NOT granted AND waitstart IS NOT NULL AND datname = current_database()
               AND query ~ '^(ALTER TABLE|CREATE INDEX|DROP INDEX)'";
    let mut seen = HashSet::new();
    until(async || {
        seen.extend(sqlx::query_scalar::<_, String>(sql).fetch_all(pool).await.unwrap());
        (seen.len() >= times).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_migration_that_waits_for_an_open_report() {
    let place = Place::new().await;
    let service = place.start().await;
    let pool = place.database().await;
    let mut report = report(&place, "SELECT count(*) FROM queue.jobs, queue.finished_jobs").await;
    let store = Store::open(&place.config.database).unwrap();
    let migration = tokio::spawn(async move {
        let change = later(&[(
            "ALTER TABLE jobs ADD COLUMN later text; ALTER TABLE finished_jobs ADD COLUMN later text",
            false,
        )]);
        store.migrate_with("queue", &change).await
    });
    // All that is asked for is done, while it tries to get the table.
    let work = async {
        loop {
            let id = service.probe(json!({})).await;
            assert_eq!(service.finished(&id).await["status"], "completed");
        }
    };
    tokio::select! {
        () = waited(&pool, 3) => {}
        () = work => {}
    }
    assert!(!migration.is_finished());
    sqlx::raw_sql("COMMIT").execute(&mut report).await.unwrap();
    migration.await.unwrap().unwrap();
    let id = service.probe(json!({})).await;
    assert_eq!(service.finished(&id).await["status"], "completed");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migrator_names_who_holds_it_up() {
    let mut place = Place::new().await;
    empty(&mut place).await.close().await;
    // As far as an older version had come.
    let first: Vec<Migration> = queue_service::store::MIGRATIONS.iter().filter(|m| m.version <= 13).cloned().collect();
    let store = Store::open(&place.config.database).unwrap();
    store.migrate_with("queue", &Migrator::with_migrations(first)).await.unwrap();
    let mut report = report(&place, "SELECT count(*) FROM queue.jobs").await;
    let migrator = Program::start(&["migrate"], Some(&place.config));
    let told = migrator.logged("waits for a lock").await;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut report).await.unwrap();
    assert!(told.contains(&format!("process {pid}, 'report' of the user 'queue'")), "{told}");
    // And whoever comes second names the first.
    let second = Program::start(&["migrate"], Some(&place.config));
    let told = second.logged("another process brings the schema up to date").await;
    assert!(told.contains("'queue-service'"), "{told}");
    sqlx::raw_sql("COMMIT").execute(&mut report).await.unwrap();
    for mut program in [migrator, second] {
        assert!(program.ended().await.success(), "{}", program.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_built_beside_those_who_work() {
    let place = Place::new().await;
    let service = place.start().await;
    let pool = place.database().await;
    // What an index that was cut off leaves behind: it is kept up and of no use.
    for _ in 0..2 {
        let id = service.call("enqueue", json!({"type": "probe", "payload": {}, "delay": "1h"})).await;
        assert!(id["jobId"].is_string());
    }
    let cut = sqlx::raw_sql("CREATE UNIQUE INDEX CONCURRENTLY jobs_later ON jobs (type)").execute(&pool).await;
    assert!(cut.is_err());
    let valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'jobs_later'::regclass";
    assert!(!sqlx::query_scalar::<_, bool>(valid).fetch_one(&pool).await.unwrap());

    let mut report = report(&place, "SELECT count(*) FROM queue.jobs").await;
    let store = Store::open(&place.config.database).unwrap();
    let migration = tokio::spawn(async move {
        let change =
            later(&[("-- no-transaction\nCREATE INDEX CONCURRENTLY jobs_later ON jobs (type, run_at);\n", true)]);
        store.migrate_with("queue", &change).await
    });
    waited(&pool, 1).await;
    for _ in 0..20 {
        let id = service.probe(json!({})).await;
        assert_eq!(service.finished(&id).await["status"], "completed");
    }
    assert!(!migration.is_finished());
    sqlx::raw_sql("COMMIT").execute(&mut report).await.unwrap();
    migration.await.unwrap().unwrap();
    let made = "SELECT i.indisvalid AND NOT i.indisunique FROM pg_index i WHERE indexrelid = 'jobs_later'::regclass";
    assert!(sqlx::query_scalar::<_, bool>(made).fetch_one(&pool).await.unwrap());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_finished_jobs_is_on_every_partition() {
    let place = Place::new().await;
    let service = place.start().await;
    let pool = place.database().await;
    let id = service.probe(json!({})).await;
    assert_eq!(service.finished(&id).await["status"], "completed");
    let store = Store::open(&place.config.database).unwrap();
    let change = later(&[(
        "-- no-transaction\nCREATE INDEX CONCURRENTLY finished_later ON finished_jobs (worker_id, id);\n",
        true,
    )]);
    // Cut off half-way: on the parent alone and on a single partition.
    run(&pool, "CREATE INDEX finished_later ON ONLY finished_jobs (worker_id, id)").await;
    run(&pool, "CREATE INDEX finished_completed__finished_later ON ONLY finished_completed (worker_id, id)").await;
    store.migrate_with("queue", &change).await.unwrap();
    run(&pool, "SELECT make_finished_partitions((now() + interval '40 days')::date)").await;
    let lacking = "SELECT t.relname::text FROM pg_partition_tree('finished_jobs') p JOIN pg_class t ON t.oid = p.relid
                   WHERE NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = t.oid AND i.indisvalid
                                     AND pg_get_indexdef(i.indexrelid) LIKE '%(worker_id, id)')";
    let lacking: Vec<String> = sqlx::query_scalar(lacking).fetch_all(&pool).await.unwrap();
    assert!(lacking.is_empty(), "{lacking:?}");
    // Nothing is made twice.
    run(&pool, "DELETE FROM _sqlx_migrations WHERE version > 9000").await;
    store.migrate_with("queue", &change).await.unwrap();
    let many = "SELECT max(n) FROM (SELECT count(*) AS n FROM pg_index
                WHERE pg_get_indexdef(indexrelid) LIKE '%(worker_id, id)' GROUP BY indrelid) AS c";
    assert_eq!(sqlx::query_scalar::<_, i64>(many).fetch_one(&pool).await.unwrap(), 1);
    service.stop().await;
}
