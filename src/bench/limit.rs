//! What the parts can do by themselves on the same servers, with our batch sizes; and our share of that.
//!
//! The parts share the cores, so their costs add up: the limit of a path is the harmonic sum 1 / (1/a + 1/b + …) of the
//! rates of its parts. A machine is not as fast in one minute as in the next, so the parts are measured before and after the
//! scenarios, and the mean of both counts.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures_util::{StreamExt, future::try_join_all};
use sqlx::{PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

use super::report::Row;
use crate::dev::Servers;

/// Rows of bare tables, and messages.
const ROWS: usize = 50_000;
const INSERT_BATCH: usize = 500;
const RUN_BATCH: usize = 100;
const CONNECTIONS: usize = 2;
const IN_FLIGHT: usize = 64;
const WINDOW: usize = 500;

const TABLES: &str = r#"
CREATE SCHEMA IF NOT EXISTS bare;
DROP TABLE IF EXISTS bare.live, bare.over;
CREATE TABLE bare.live (id uuid PRIMARY KEY, type text NOT NULL, status text NOT NULL DEFAULT 'pending',
    attempt smallint NOT NULL DEFAULT 0, run bigint NOT NULL DEFAULT 0, payload json NOT NULL, worker text,
    created_at timestamptz NOT NULL DEFAULT now(), started_at timestamptz) WITH (fillfactor = 50);
CREATE TABLE bare.over (LIKE bare.live);
CREATE INDEX ON bare.over (id)"#;

const INSERT: &str =
    "INSERT INTO bare.live (id, type, payload) SELECT id, 'bench', '{\"n\":1}' FROM unnest($1::uuid[]) AS b (id)";
const CLAIM: &str = "UPDATE bare.live SET status = 'processing', attempt = attempt + 1, run = run + 1, worker = 'w',
    started_at = clock_timestamp() WHERE id = ANY($1) AND status = 'pending'";
const FINISH: &str = "WITH ended AS (DELETE FROM bare.live WHERE id = ANY($1) AND status = 'processing' RETURNING *)
    INSERT INTO bare.over SELECT * FROM ended";

/// Which parts each of our rows is made of.
const PATHS: [(&str, &[&str]); 6] = [
    ("enqueue Rpc", &["request-reply", "insert", "publish"]),
    ("bulk enqueue and run", &["insert", "publish", "claim", "finish", "consume"]),
    ("bulk enqueue", &["insert", "publish"]),
    ("drain", &["claim", "finish", "consume"]),
    ("lifecycle", &["request-reply", "insert", "publish", "claim", "finish", "consume"]),
    ("enqueue Http", &["insert", "publish"]),
];

/// Jobs or messages per second of each part by itself.
pub(super) type Rates = BTreeMap<&'static str, f64>;

pub(super) async fn measure(servers: &Servers) -> anyhow::Result<Rates> {
    let mut rates = Rates::new();
    let hot = servers.postgres.url("queue").parse::<sqlx::postgres::PgConnectOptions>()?;
    let hot = hot.options([("enable_seqscan", "off"), ("plan_cache_mode", "force_generic_plan")]);
    let db = PgPoolOptions::new().max_connections(CONNECTIONS as u32).connect_with(hot).await?;
    sqlx::raw_sql(TABLES).execute(&db).await?;
    let ids: Vec<Uuid> = (0..ROWS).map(|_| Uuid::now_v7()).collect();
    for (name, sql, batch) in
        [("insert", INSERT, INSERT_BATCH), ("claim", CLAIM, RUN_BATCH), ("finish", FINISH, RUN_BATCH)]
    {
        rates.insert(name, batched(&db, sql, &ids, batch).await?);
    }
    let nats = async_nats::connect(servers.nats.url()).await?;
    rates.insert("request-reply", request_reply(&nats).await?);
    let (publish, consume) = stream(&nats).await?;
    rates.insert("publish", publish);
    rates.insert("consume", consume);
    // Else autovacuum would clean up behind them while the next scenario is measured.
    sqlx::raw_sql("DROP SCHEMA bare CASCADE").execute(&db).await?;
    db.close().await;
    Ok(rates)
}

/// What the rates of before and after the scenarios allow, and our share of it.
pub(super) fn shares(before: &Rates, after: &Rates, ours: &[Row]) -> Vec<Row> {
    let mean = |(part, after): (&&'static str, &f64)| (*part, (before.get(part).unwrap_or(after) + after) / 2.0);
    let rates: Rates = after.iter().map(mean).collect();
    let mut rows: Vec<Row> = rates.iter().map(|(name, rate)| bare(name, *rate)).collect();
    for row in ours {
        let path = PATHS.iter().find(|(name, _)| row.name.starts_with(name));
        let (Some((_, parts)), Some(per_second)) = (path, row.per_second) else { continue };
        let limit = 1.0 / parts.iter().filter_map(|part| rates.get(part)).map(|rate| 1.0 / rate).sum::<f64>();
        rows.push(Row {
            name: format!("limit of {}", row.name),
            per_second: Some(limit),
            share: Some(per_second / limit),
            ..Row::default()
        });
    }
    rows
}

fn bare(name: &str, rate: f64) -> Row {
    Row { name: format!("bare {name}"), jobs: ROWS, per_second: Some(rate), ..Row::default() }
}

fn rate(n: usize, took: Duration) -> f64 {
    n as f64 / took.as_secs_f64()
}

async fn batched(db: &PgPool, sql: &'static str, ids: &[Uuid], batch: usize) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for share in ids.chunks(ids.len().div_ceil(CONNECTIONS)) {
        let (db, share) = (db.clone(), share.to_vec());
        tasks.spawn(async move {
            for ids in share.chunks(batch) {
                sqlx::query(sql).bind(ids.to_vec()).execute(&db).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(rate(ids.len(), began.elapsed()))
}

async fn request_reply(nats: &async_nats::Client) -> anyhow::Result<f64> {
    let mut requests = nats.subscribe("bare.echo").await?;
    let echo = nats.clone();
    let answering = tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            if let Some(reply) = request.reply {
                let _ = echo.publish(reply, request.payload).await;
            }
        }
    });
    let began = Instant::now();
    // In one task, as the load itself.
    let callers = (0..IN_FLIGHT).map(|_| async {
        for _ in 0..ROWS / IN_FLIGHT {
            nats.request("bare.echo", "{\"type\":\"bench\",\"payload\":{\"n\":1}}".into()).await?;
        }
        anyhow::Ok(())
    });
    try_join_all(callers).await?;
    let took = began.elapsed();
    answering.abort();
    Ok(rate(ROWS / IN_FLIGHT * IN_FLIGHT, took))
}

/// Publishing in windows, and consuming with an acknowledgement each.
async fn stream(nats: &async_nats::Client) -> anyhow::Result<(f64, f64)> {
    use async_nats::jetstream::{consumer::pull, stream};
    let jetstream = async_nats::jetstream::new(nats.clone());
    let config = stream::Config {
        name: "bare".into(),
        subjects: vec!["bare.jobs.*".into()],
        retention: stream::RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    let _ = jetstream.delete_stream("bare").await;
    let stream = jetstream.create_stream(config).await?;
    let began = Instant::now();
    for _ in 0..ROWS / WINDOW {
        let mut acks = Vec::with_capacity(WINDOW);
        for _ in 0..WINDOW {
            let body = format!("{{\"jobId\":\"{}\",\"type\":\"bench\",\"lane\":\"normal\"}}", Uuid::nil());
            acks.push(jetstream.publish("bare.jobs.x", body.into()).await?);
        }
        for ack in acks {
            ack.await?;
        }
    }
    let publish = rate(ROWS, began.elapsed());
    let config = pull::Config { durable_name: Some("bare".into()), max_ack_pending: 50_000, ..Default::default() };
    let consumer = stream.create_consumer(config).await?;
    let mut messages = consumer.stream().max_messages_per_batch(WINDOW).messages().await?;
    let began = Instant::now();
    for _ in 0..ROWS {
        let message = messages.next().await.context("the stream ended")??;
        message.ack().await.map_err(|e| anyhow::anyhow!("{e}"))?;
    }
    nats.flush().await?;
    let consume = rate(ROWS, began.elapsed());
    jetstream.delete_stream("bare").await?;
    Ok((publish, consume))
}
