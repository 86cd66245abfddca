//! What an answer means. Pure; the rules are those of docs/protocol.md, section "Handlers that are called".

use std::time::Duration;

use serde_json::value::RawValue;

use crate::{
    handlers::{Ended, result::too_large},
    job::{Failure, FailureKind, json},
};

/// When a job that was not wanted now is offered again, unless the answer says otherwise.
const RELEASED: Duration = Duration::from_secs(1);
/// Longest wish of a handler for a later attempt. Source: docs/protocol.md.
const LONGEST_WISH: Duration = Duration::from_secs(24 * 3600);
/// What is kept of an error that is no problem object, in characters.
const TEXT_MAX: usize = 500;

/// The headers that count, as texts.
#[derive(Debug, Default)]
pub struct Said<'a> {
    /// `Nats-Service-Error-Code`, or the status of HTTP where that is none of success.
    pub error_code: Option<&'a str>,
    /// `Nats-Service-Error`.
    pub error: Option<&'a str>,
    pub retry: Option<&'a str>,
    pub retry_after: Option<&'a str>,
    pub release: Option<&'a str>,
    pub accepted: Option<&'a str>,
    pub job_id: Option<&'a str>,
    pub run: Option<&'a str>,
}

/// Whether an answer names another run than the one it came for.
pub fn is_of_another_run(said: &Said<'_>, id: &str, run: i64) -> bool {
    let differs = |header: Option<&str>, ours: &str| header.is_some_and(|theirs| theirs.trim() != ours);
    differs(said.job_id, id) || differs(said.run, &run.to_string())
}

/// Judges an answer. `max`: largest result, in bytes.
pub fn judge(said: &Said<'_>, body: &[u8], max: usize) -> Ended {
    let wish = said.retry_after.and_then(span);
    if said.release.is_some_and(is_true) {
        return Ended::Released(wish.unwrap_or(RELEASED));
    }
    if said.error_code.is_some() || said.error.is_some() {
        let text = match said.error.map(str::trim) {
            Some(text) if !text.is_empty() => text.to_owned(),
            Some(_) | None => "the handler answered with an error and no text".to_owned(),
        };
        let message = match said.error_code.map(str::trim) {
            Some(code) if !code.is_empty() => format!("{code}: {text}"),
            Some(_) | None => text,
        };
        let permanent = said.retry.is_some_and(|retry| retry.trim().eq_ignore_ascii_case("false"));
        let kind = if permanent { FailureKind::Permanent } else { FailureKind::Error };
        return Ended::Failed(Failure::new(kind, message).after(wish));
    }
    if said.accepted.is_some_and(is_true) {
        return Ended::Outside;
    }
    result(body, max)
}

/// A result as it was sent; nothing at all is `null`.
fn result(body: &[u8], max: usize) -> Ended {
    // Before it is read: what was cut off at the limit is no JSON.
    if let Some(failure) = too_large(body.len(), max as u64) {
        return Ended::Failed(failure);
    }
    let text = if body.iter().all(u8::is_ascii_whitespace) { b"null" } else { body };
    // What is well-formed and can't be stored is cleaned later, as with every handler.
    match serde_json::from_slice::<Box<RawValue>>(text) {
        Ok(result) => Ended::Done(result),
        Err(_) => {
            let fault = json::check_value(text).err().map(|fault| fault.to_string()).unwrap_or_default();
            let message =
                format!("the handler's answer is no JSON: {fault}; answer with JSON, or with nothing for null");
            Ended::Failed(Failure::retry(message))
        }
    }
}

/// The text of an HTTP refusal: the detail of a problem object, else how the body begins.
pub fn text_of(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Problem {
        detail: String,
    }
    if let Ok(problem) = serde_json::from_slice::<Problem>(body) {
        return Some(problem.detail);
    }
    let text = String::from_utf8_lossy(body);
    let begin: String = text.trim().chars().take(TEXT_MAX).collect();
    Some(begin).filter(|text| !text.is_empty())
}

fn is_true(text: &str) -> bool {
    text.trim().eq_ignore_ascii_case("true")
}

/// `30s`, or a number of seconds.
fn span(text: &str) -> Option<Duration> {
    let text = text.trim();
    let seconds = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.or_else(|| humantime::parse_duration(text).ok()).map(|span| span.min(LONGEST_WISH))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 100;

    fn failure(said: &Said<'_>, body: &[u8]) -> Failure {
        match judge(said, body, MAX) {
            Ended::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    fn done(body: &[u8]) -> String {
        match judge(&Said::default(), body, MAX) {
            Ended::Done(result) => result.get().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_without_headers_is_the_result() {
        assert_eq!(done(br#"{"pages": 3}"#), r#"{"pages": 3}"#);
        assert_eq!((done(b"").as_str(), done(b" \n").as_str(), done(b"7").as_str()), ("null", "null", "7"));
    }

    #[test]
    fn garbage_is_worth_another_attempt_and_too_much_is_not() {
        let garbage = failure(&Said::default(), b"<html>");
        assert_eq!(garbage.kind, FailureKind::Error);
        assert!(garbage.message.contains("no JSON"), "{}", garbage.message);
        let large = failure(&Said::default(), &[b' '; 101]);
        assert_eq!(large.kind, FailureKind::Permanent);
        assert_eq!(large.message, "result_too_large: the result has 101 bytes, the limit is 100 bytes");
    }

    #[test]
    fn an_error_goes_before_the_body() {
        let said = Said { error_code: Some("503"), error: Some("model is cold"), ..Said::default() };
        let failed = failure(&said, br#""a result""#);
        assert_eq!((failed.kind, failed.message.as_str()), (FailureKind::Error, "503: model is cold"));
        let for_good = failure(&Said { retry: Some(" False "), ..said }, b"");
        assert_eq!(for_good.kind, FailureKind::Permanent);
        let silent = failure(&Said { error_code: Some("500"), ..Said::default() }, b"");
        assert_eq!(silent.message, "500: the handler answered with an error and no text");
    }

    #[test]
    fn a_wish_for_later_is_a_number_of_seconds_or_a_span_of_at_most_a_day() {
        for (text, seconds) in
            [("30", Some(30)), ("1.5", Some(1)), ("2m", Some(120)), ("90h", Some(86_400)), ("soon", None), ("-5", None)]
        {
            let said = Said { error: Some("busy"), retry_after: Some(text), ..Said::default() };
            assert_eq!(failure(&said, b"").retry_after.map(|span| span.as_secs()), seconds, "{text}");
        }
    }

    #[test]
    fn a_release_costs_no_attempt_and_goes_before_the_error() {
        let said = Said { release: Some("true"), error_code: Some("503"), retry_after: Some("3"), ..Said::default() };
        assert!(matches!(judge(&said, b"", MAX), Ended::Released(span) if span.as_secs() == 3));
        let said = Said { release: Some("true"), ..Said::default() };
        assert!(matches!(judge(&said, b"x", MAX), Ended::Released(span) if span == RELEASED));
    }

    #[test]
    fn what_was_accepted_goes_on_outside() {
        let said = Said { accepted: Some("true"), ..Said::default() };
        assert!(matches!(judge(&said, b"", MAX), Ended::Outside));
    }

    #[test]
    fn answers_that_name_another_run_are_told_apart() {
        let said = |job_id, run| Said { job_id, run, ..Said::default() };
        assert!(!is_of_another_run(&said(None, None), "a", 3));
        assert!(!is_of_another_run(&said(Some("a"), Some("3")), "a", 3));
        assert!(is_of_another_run(&said(Some("b"), None), "a", 3));
        assert!(is_of_another_run(&said(Some("a"), Some("2")), "a", 3));
    }

    #[test]
    fn the_text_of_a_refusal_is_the_problems_detail_or_how_the_body_begins() {
        assert_eq!(text_of(br#"{"type": "about:blank", "detail": "no such bucket"}"#).unwrap(), "no such bucket");
        assert_eq!(text_of(b" Not today ").unwrap(), "Not today");
        assert_eq!(text_of(&[b'x'; 2000]).unwrap().len(), TEXT_MAX);
        assert_eq!(text_of(b""), None);
    }

    proptest! {
        #[test]
        fn no_answer_whatever_makes_it_panic(code in proptest::option::of(".{0,20}"), text in proptest::option::of(".{0,200}"),
                                             after in proptest::option::of(".{0,20}"), body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let said = Said { error_code: code.as_deref(), error: text.as_deref(), retry_after: after.as_deref(), ..Said::default() };
            let _ = judge(&said, &body, MAX);
        }
    }
}
