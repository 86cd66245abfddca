//! What a run says of itself is kept, whichever way it comes and whoever holds the run.

use serde_json::{Value, json};

use crate::{
    harness::{Running, start, until},
    outside::Handler,
};

/// Who holds the run, and so which way its signs of life go.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    /// A process of the service waits for the handler's reply.
    Plain,
    /// By the handler alone.
    Accepted,
    Pulled,
}

const WAYS: [Held; 3] = [Held::Plain, Held::Accepted, Held::Pulled];

/// A run of the type `<name>` that can be spoken for.
struct Run<'a> {
    service: &'a Running,
    job_type: String,
    id: String,
    held: Held,
    handler: Option<Handler>,
}

impl<'a> Run<'a> {
    async fn begin(service: &'a Running, held: Held) -> Self {
        let job_type = match held {
            Held::Plain | Held::Accepted => "outside",
            Held::Pulled => "pulled",
        };
        let handler = if held == Held::Pulled { "pull" } else { "nats" };
        let definition = json!({"type": job_type, "handler": handler, "timeout": "1h", "backoff": {"base": "20ms"}});
        service.call("registerType", definition).await;
        let listening = if held == Held::Pulled { None } else { Some(Handler::start(service).await) };
        let id = service.enqueue(json!({"type": job_type, "payload": {}})).await;
        let mut run = Self { service, job_type: job_type.into(), id, held, handler: listening };
        run.next().await;
        run
    }

    /// Begins the next run of the job, and gives the checkpoint that it is told.
    async fn next(&mut self) -> Value {
        match &mut self.handler {
            Some(handler) => {
                let request = handler.next().await;
                if self.held == Held::Accepted {
                    handler.reply(&request, &[("Job-Accepted", "true")], "").await;
                    // As long as somebody waits for the reply, the run has more time on record than it is given.
                    let left = "SELECT lease_until - started_at < interval '3600.6 s' FROM jobs WHERE id = $1";
                    let (database, id) = (database(self.service).await, self.id.parse::<uuid::Uuid>().unwrap());
                    until(async || {
                        let is_left = sqlx::query_scalar::<_, Option<bool>>(left).bind(id).fetch_one(&database).await;
                        (is_left.unwrap() == Some(true)).then_some(())
                    })
                    .await;
                }
                serde_json::from_slice::<Value>(&request.payload).unwrap()["checkpoint"].clone()
            }
            None => {
                let wish = json!({"types": ["pulled"], "waitMs": 30_000, "workerId": "w", "leaseMs": 60_000});
                let fetched = self.service.call("work.fetch", wish).await;
                assert_eq!(fetched["jobs"][0]["id"], json!(self.id));
                fetched["jobs"][0]["checkpoint"].clone()
            }
        }
    }

    async fn say(&self, sign: Value) {
        self.say_as(&self.job_type, sign).await;
    }

    /// On the subject of another type.
    async fn say_as(&self, job_type: &str, sign: Value) {
        let subject = self.service.subject(&format!("progress.{job_type}.{}", self.id));
        self.service.nats.publish(subject, sign.to_string().into()).await.unwrap();
    }

    async fn progress(&self) -> Value {
        self.service.job(&self.id).await["progress"].clone()
    }

    async fn until_progress(&self, percent: f64, message: &str) {
        let wanted = json!({"percent": percent, "message": message});
        until(async || (self.progress().await == wanted).then_some(())).await;
    }

    /// Ends the run with an error that is tried again.
    async fn fail(&self, run: i64) {
        let error = json!({"message": "once more"});
        self.service.call("finish", json!({"jobId": self.id, "run": run, "error": error})).await;
    }
}

async fn database(service: &Running) -> sqlx::PgPool {
    let options: sqlx::postgres::PgConnectOptions = service.config.database.url.parse().unwrap();
    let options = options.options([("search_path", service.config.database.schema.as_str())]);
    sqlx::postgres::PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_outlives_the_signs_that_follow_it_at_once() {
    let (_place, service) = start().await;
    for held in WAYS {
        let mut run = Run::begin(&service, held).await;
        run.say(json!({"run": 1, "percent": 30, "message": "page 3", "checkpoint": {"page": 3}})).await;
        run.say(json!({"run": 1, "message": "page 4"})).await;
        run.until_progress(30.0, "page 4").await;
        run.fail(1).await;
        assert_eq!(run.next().await, json!({"page": 3}), "{held:?}");
        service.call("cancelJob", json!({"jobId": run.id})).await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_counts_that_comes_just_before_the_reply() {
    let (_place, service) = start().await;
    service.call("registerType", json!({"type": "outside", "handler": "nats", "backoff": {"base": "20ms"}})).await;
    let mut handler = Handler::start(&service).await;
    let id = service.enqueue(json!({"type": "outside", "payload": {}, "maxAttempts": 100})).await;
    let subject = service.subject(&format!("progress.outside.{id}"));
    for run in 1..=20 {
        let request = handler.next().await;
        let body: Value = serde_json::from_slice(&request.payload).unwrap();
        assert_eq!(body["checkpoint"].as_i64().unwrap_or_default(), run - 1);
        handler.publish(&subject, json!({"run": run, "checkpoint": run})).await;
        handler.reply(&request, &[("Nats-Service-Error-Code", "500"), ("Job-Retry-After", "0.01")], "").await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sign_leaves_out_stays_as_it_was() {
    let (_place, service) = start().await;
    for held in WAYS {
        let run = Run::begin(&service, held).await;
        run.say(json!({"run": 1, "percent": 30, "message": "page 3"})).await;
        run.until_progress(30.0, "page 3").await;
        run.say(json!({"run": 1, "percent": 40})).await;
        run.until_progress(40.0, "page 3").await;
        run.say(json!({"run": 1, "message": "page 5"})).await;
        run.until_progress(40.0, "page 5").await;
        if held == Held::Pulled {
            let beat = json!({"workerId": "w", "runs": [{"jobId": run.id, "run": 1, "percent": 60.5}]});
            assert_eq!(service.call("work.heartbeat", beat).await["runs"][0]["state"], "held");
            assert_eq!(run.progress().await, json!({"percent": 60.5, "message": "page 5"}));
        }
        service.call("cancelJob", json!({"jobId": run.id})).await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signs_of_an_older_run_do_not_hide_those_of_the_live_one() {
    let (_place, service) = start().await;
    for held in [Held::Accepted, Held::Pulled] {
        let mut run = Run::begin(&service, held).await;
        run.fail(1).await;
        run.next().await;
        run.say(json!({"run": 2, "percent": 20, "message": "live", "checkpoint": 2})).await;
        for _ in 0..3 {
            run.say(json!({"run": 1, "percent": 99, "message": "old", "checkpoint": 1})).await;
        }
        run.until_progress(20.0, "live").await;
        let beats =
            [json!({"jobId": run.id, "run": 2, "percent": 30}), json!({"jobId": run.id, "run": 1, "percent": 99})];
        let told = service.call("work.heartbeat", json!({"workerId": "w", "runs": beats})).await;
        assert_eq!((&told["runs"][0]["state"], &told["runs"][1]["state"]), (&json!("held"), &json!("lost")));
        assert_eq!(run.progress().await["percent"], 30.0);
        run.fail(2).await;
        assert_eq!(run.next().await, json!(2), "{held:?}");
        service.call("cancelJob", json!({"jobId": run.id})).await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_on_the_subject_of_another_type_changes_nothing() {
    let (_place, service) = start().await;
    for held in WAYS {
        let mut run = Run::begin(&service, held).await;
        for stranger in ["send-email", "probe", "nobody"] {
            run.say_as(stranger, json!({"run": 1, "percent": 99, "message": "forged", "checkpoint": {"evil": true}}))
                .await;
        }
        run.say(json!({"run": 1, "percent": 10, "message": "true"})).await;
        run.until_progress(10.0, "true").await;
        run.fail(1).await;
        assert_eq!(run.next().await, Value::Null, "{held:?}");
        service.call("cancelJob", json!({"jobId": run.id})).await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_names_what_it_does_not_keep_and_keeps_the_rest() {
    let (_place, service) = start().await;
    let (large, good) = (Run::begin(&service, Held::Pulled).await, Run::begin(&service, Held::Pulled).await);
    let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
    let http = reqwest::Client::new();
    for (checkpoint, text) in
        [(json!("x".repeat(300 << 10)), "262144 bytes"), (serde_json::from_str(&deep).unwrap(), "64")]
    {
        let runs = [
            json!({"jobId": large.id, "run": 1, "percent": 101, "message": "large", "checkpoint": checkpoint}),
            json!({"jobId": good.id, "run": 1, "percent": 50, "message": "good", "checkpoint": {"page": 5}}),
        ];
        let beat = json!({"workerId": "w", "runs": runs});
        if text == "64" {
            // Nesting is a rule for the whole request.
            assert_eq!(service.ask("work.heartbeat", beat.to_string()).await.code(), Some("invalid_request"));
            continue;
        }
        let by_http: Value =
            http.post(service.url("/work/heartbeat")).json(&beat).send().await.unwrap().json().await.unwrap();
        for told in [service.call("work.heartbeat", beat).await, by_http] {
            assert_eq!(told["runs"][0]["state"], "held");
            let errors: Vec<_> =
                told["runs"][0]["errors"].as_array().unwrap().iter().map(|e| (&e["path"], &e["message"])).collect();
            assert_eq!(errors[0], (&json!("/runs/0/percent"), &json!("must be 0 to 100")));
            assert_eq!(errors[1].0, &json!("/runs/0/checkpoint"));
            assert!(errors[1].1.as_str().unwrap().contains(text), "{told}");
            assert_eq!(told["runs"][1], json!({"jobId": good.id, "run": 1, "state": "held"}));
        }
    }
    assert_eq!(large.progress().await, json!({"percent": 0.0, "message": "large"}));
    assert_eq!(good.progress().await, json!({"percent": 50.0, "message": "good"}));
    service.stop().await;
}
