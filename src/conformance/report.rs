//! What was found.

use serde::Serialize;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Passed,
    /// It keeps the protocol, and could make more of it.
    Warned,
    Failed,
    /// It could not be checked; the detail says what is needed.
    Skipped,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    pub detail: String,
}

/// All checks of one handler or worker, in their order.
#[derive(Debug, Serialize)]
pub struct Report {
    pub examined: String,
    pub findings: Vec<Finding>,
}

/// A report that is being written.
pub(super) struct Sheet<'a> {
    report: Report,
    told: Box<dyn FnMut(&Finding) + 'a>,
}

/// What a check has come to, and why.
pub(super) struct Ruling(Verdict, String);

pub(super) fn passed(detail: impl Into<String>) -> Ruling {
    Ruling(Verdict::Passed, detail.into())
}

pub(super) fn warned(detail: impl Into<String>) -> Ruling {
    Ruling(Verdict::Warned, detail.into())
}

pub(super) fn failed(detail: impl Into<String>) -> Ruling {
    Ruling(Verdict::Failed, detail.into())
}

pub(super) fn skipped(detail: impl Into<String>) -> Ruling {
    Ruling(Verdict::Skipped, detail.into())
}

impl<'a> Sheet<'a> {
    pub fn new(examined: &str, told: impl FnMut(&Finding) + 'a) -> Self {
        let report = Report { examined: examined.to_owned(), findings: Vec::new() };
        Self { report, told: Box::new(told) }
    }

    /// Notes how a check ended; `true` unless it failed.
    pub fn note(&mut self, check: &'static str, Ruling(verdict, detail): Ruling) -> bool {
        let finding = Finding { check, verdict, detail };
        (self.told)(&finding);
        self.report.findings.push(finding);
        verdict != Verdict::Failed
    }

    pub fn done(self) -> Report {
        self.report
    }
}

impl Report {
    pub fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// Whether the protocol is kept, as far as it was checked.
    pub fn is_good(&self) -> bool {
        self.count(Verdict::Failed) == 0
    }
}
