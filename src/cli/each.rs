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
        let said = out.paint(tone(&state), done(verb, &job).unwrap_or(&state));
        out.line(&format!("{}  {}  {said}", clean(&job.id), clean(&job.r#type)))?;
    }
    Ok(exit)
}

/// What was done, where the state does not tell it.
fn done(verb: Verb, job: &Job) -> Option<&'static str> {
    (verb == Verb::CancelJob && job.status == "processing").then_some("asked to stop")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cancels_a_running_job_is_told_that_it_was_asked_to_stop() {
        let job = |status| {
            let at = "2026-01-31T08:00:00Z";
            serde_json::from_value::<Job>(serde_json::json!({
                "id": "1", "type": "a", "status": status, "attempts": 1, "maxAttempts": 3, "priority": 0,
                "createdAt": at, "runAt": at, "tags": []
            }))
            .unwrap()
        };
        assert_eq!(done(Verb::CancelJob, &job("processing")), Some("asked to stop"));
        assert_eq!(done(Verb::CancelJob, &job("cancelled")), None);
        assert_eq!(done(Verb::RetryJob, &job("processing")), None);
    }
}
