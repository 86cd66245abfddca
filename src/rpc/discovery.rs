//! `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`: how `nats micro ls` and others find the service. Source: NATS ADR-32.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use async_nats::{SubscribeError, Subscriber};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{QUEUE_GROUP, Shared, endpoint, endpoint::Endpoint};
use crate::{
    ops::API_VERSION,
    supervise::{Name, Tasks},
};

/// One process, as it introduces itself.
struct Instance {
    name: String,
    id: String,
    started: DateTime<Utc>,
    endpoints: Arc<[Arc<Endpoint>]>,
    get_schema: String,
}

#[derive(Clone, Copy)]
enum Question {
    Ping,
    Info,
    Stats,
}

pub(super) async fn start(
    shared: Arc<Shared>,
    endpoints: Arc<[Arc<Endpoint>]>,
    stop: &CancellationToken,
    tasks: &Tasks,
) -> Result<(), SubscribeError> {
    let instance = Arc::new(Instance {
        name: shared.broker.subjects.prefix().to_owned(),
        id: uuid::Uuid::now_v7().simple().to_string(),
        started: Utc::now(),
        endpoints,
        get_schema: shared.broker.subjects.rpc("getSchema"),
    });
    for (word, question) in [("PING", Question::Ping), ("INFO", Question::Info), ("STATS", Question::Stats)] {
        let (name, id) = (&instance.name, &instance.id);
        for subject in [format!("$SRV.{word}"), format!("$SRV.{word}.{name}"), format!("$SRV.{word}.{name}.{id}")] {
            let task = Name::of("introduction", &subject);
            let requests = Arc::new(Mutex::new(shared.broker.rpc.subscribe(subject).await?));
            let (shared, instance) = (shared.clone(), instance.clone());
            tasks.keep_until(task, stop, move || {
                introduce(shared.clone(), instance.clone(), question, requests.clone())
            });
        }
    }
    Ok(())
}

async fn introduce(shared: Arc<Shared>, instance: Arc<Instance>, question: Question, requests: Arc<Mutex<Subscriber>>) {
    let mut requests = requests.lock().await;
    while let Some(request) = requests.next().await {
        let Some(to) = request.reply.filter(|to| endpoint::allowed(to, &shared.reply_prefixes)) else { continue };
        let answer = match question {
            Question::Ping => instance.ping(),
            Question::Info => instance.info(),
            Question::Stats => instance.stats(),
        };
        shared.replies.send(Some(to), Ok(answer.to_string().into_bytes())).await;
    }
}

impl Instance {
    fn ping(&self) -> Value {
        json!({
            "type": "io.nats.micro.v1.ping_response",
            "name": self.name,
            "id": self.id,
            "version": env!("CARGO_PKG_VERSION"),
            "metadata": {"api-version": API_VERSION},
        })
    }

    fn info(&self) -> Value {
        let mut info = self.ping();
        info["type"] = json!("io.nats.micro.v1.info_response");
        info["description"] = json!(env!("CARGO_PKG_DESCRIPTION"));
        info["endpoints"] = self.endpoints.iter().map(|e| self.endpoint(e)).map(Value::from_iter).collect();
        info
    }

    fn stats(&self) -> Value {
        let mut stats = self.ping();
        stats["type"] = json!("io.nats.micro.v1.stats_response");
        stats["started"] = json!(self.started.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true));
        stats["endpoints"] = self.endpoints.iter().map(|e| self.endpoint_stats(e)).map(Value::from_iter).collect();
        stats
    }

    fn endpoint(&self, endpoint: &Endpoint) -> BTreeMap<String, Value> {
        // A name, not the schema itself: the whole answer has to fit into one message.
        let schema = format!("{} {{\"verb\":\"{}\"}}", self.get_schema, endpoint.verb.name());
        BTreeMap::from([
            ("name".to_owned(), json!(endpoint.name)),
            ("subject".to_owned(), json!(endpoint.subject)),
            ("queue_group".to_owned(), json!(QUEUE_GROUP)),
            ("metadata".to_owned(), json!({"schema": schema})),
        ])
    }

    fn endpoint_stats(&self, endpoint: &Endpoint) -> BTreeMap<String, Value> {
        let counts = &endpoint.counts;
        let (requests, busy) = (counts.requests.load(Ordering::Relaxed), counts.busy_ns.load(Ordering::Relaxed));
        let last_error = counts.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut stats = self.endpoint(endpoint);
        stats.extend([
            ("num_requests".to_owned(), json!(requests)),
            ("num_errors".to_owned(), json!(counts.errors.load(Ordering::Relaxed))),
            ("last_error".to_owned(), json!(last_error)),
            ("processing_time".to_owned(), json!(busy)),
            ("average_processing_time".to_owned(), json!(busy.checked_div(requests).unwrap_or(0))),
        ]);
        stats
    }
}
