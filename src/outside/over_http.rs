//! A handler that is asked by a POST, signed by Standard Webhooks when its type has a secret.

use std::time::Duration;

use chrono::Utc;
use reqwest::{
    Method, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde_json::value::RawValue;
use url::Url;

use super::{
    Callers,
    presence::Presence,
    reply::{self, Said},
    request,
};
use crate::{
    handlers::{
        Ended, Faults, RunContext,
        clients::{
            fetch::{Error, Request, Response},
            guard::shown,
            sign::Signer,
        },
        typed::{Erased, Run},
    },
    job::{Failure, JobType},
    types::Definition,
};

const LATER: Duration = Duration::from_secs(1);
/// What is read of a refusal, in bytes.
const REFUSAL_MAX: usize = 16 * 1024;

pub(super) struct OverHttp {
    callers: Callers,
    presence: Presence,
    url: Url,
    signer: Option<Signer>,
}

impl OverHttp {
    /// # Errors
    /// An address or a secret that can't be used.
    pub fn new(callers: Callers, job_type: JobType, definition: &Definition) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let text = definition.url.as_deref().unwrap_or_default();
        let url = callers.fetcher.guard().parse(text).map_err(|e| faults.add("/url", e.to_string())).ok();
        let signer = definition.secret.as_deref().map(Signer::new).transpose();
        let signer = signer.map_err(|e| faults.add("/secret", e.to_string())).ok();
        let presence = Presence::new(job_type, callers.store.clone(), callers.broker.clone());
        match (url, signer) {
            (Some(url), Some(signer)) => Ok(Self { callers, presence, url, signer }),
            _ => Err(faults),
        }
    }

    async fn ask(&self, ctx: &RunContext) -> Ended {
        let Some(body) = self.callers.body(ctx).await else { return Ended::Released(LATER) };
        let headers = self.headers(ctx, &body);
        // The run's own end comes at the same time, and says it better.
        let timeout = ctx.time_left() + Duration::from_secs(1);
        let request = Request { method: Method::POST, url: &self.url, headers, body: Some(body), timeout };
        self.presence.asked();
        match self.callers.fetcher.send(request).await {
            Ok(response) => {
                self.presence.somebody().await;
                self.judge(response).await
            }
            Err(Error::Connect { .. } | Error::Dns { .. }) => Ended::Released(self.presence.nobody().await),
            Err(e) => Ended::Failed(e.into_failure()),
        }
    }

    async fn judge(&self, response: Response) -> Ended {
        let (status, headers) = (response.status(), response.headers().clone());
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let mut said = Said {
            retry: header("Job-Retry"),
            retry_after: header("Job-Retry-After").or_else(|| header("Retry-After")),
            release: header("Job-Release"),
            job_id: header("Job-Id"),
            run: header("Job-Run"),
            ..Said::default()
        };
        let max = if status.is_success() { self.callers.max_result + 1 } else { REFUSAL_MAX };
        let body = match response.body(max).await {
            Ok(body) => body.bytes,
            Err(e) => return Ended::Failed(e.into_failure()),
        };
        if status.is_success() {
            said.accepted = (status == StatusCode::ACCEPTED).then_some("true");
            return reply::judge(&said, &body, self.callers.max_result);
        }
        let text = reply::text_of(&body).unwrap_or_else(|| format!("{} answered so", shown(&self.url)));
        said.error_code = Some(status.as_str());
        said.error = Some(&text);
        reply::judge(&said, &[], self.callers.max_result)
    }

    fn headers(&self, ctx: &RunContext, body: &[u8]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut set = |name: &'static str, value: String| {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        };
        let now = Utc::now();
        set("content-type", "application/json".to_owned());
        for (name, value) in request::headers(ctx, now) {
            set(name, value);
        }
        if let Some(signer) = &self.signer {
            let id = format!("{}.{}", ctx.job_id, ctx.run);
            set("webhook-signature", signer.sign(&id, now.timestamp(), body));
            set("webhook-timestamp", now.timestamp().to_string());
            set("webhook-id", id);
        }
        headers
    }
}

impl Erased for OverHttp {
    fn run<'a>(&'a self, ctx: &'a RunContext, _: &'a RawValue) -> Run<'a> {
        Box::pin(async move {
            tokio::select! {
                ended = self.ask(ctx) => ended,
                // Closes the connection, which tells the handler.
                () = ctx.cancelled() => Ended::Failed(Failure::retry("stopped before the handler answered")),
            }
        })
    }

    fn room(&self) -> usize {
        self.presence.room()
    }
}
