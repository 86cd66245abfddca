//! One request per job named on the command line: what fails does not keep the others from being asked for.

use chrono::Utc;
use serde_json::Value;

use super::{
    exit::{Exit, report},
    output::Output,
    text::clean,
    view::tone,
};
use crate::{
    client::{CallError, Client, Job, read},
    job::model::JobId,
    ops::Verb,
};

pub async fn job(
    verb: Verb,
    ids: &[JobId],
    request: impl Fn(JobId) -> Value,
    client: &Client,
    out: &Output,
) -> anyhow::Result<Exit> {
    let mut exit = Exit::Done;
    for id in ids {
        let answer = match client.call(verb, &request(*id)).await {
            Ok(answer) => answer,
            Err(e @ CallError::Refused(_)) => {
                exit = exit.or(report(&e.into(), out));
                continue;
            }
            // Nobody is there: the others would fail in the same way.
            Err(e) => return Err(e.into()),
        };
        if out.json {
            if ids.len() == 1 {
                out.json(&answer)?;
            } else {
                out.json_line(&String::from_utf8_lossy(&answer))?;
            }
            continue;
        }
        let job: Job = read(verb, &answer)?;
        let state = clean(job.state(Utc::now()));
        let asked = verb == Verb::CancelJob && job.status == "processing";
        let told = if asked { "asked to stop" } else { &state };
        out.line(&format!("{}  {}  {}", clean(&job.id), clean(&job.r#type), out.paint(tone(&state), told)))?;
    }
    Ok(exit)
}
