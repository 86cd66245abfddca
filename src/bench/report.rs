//! The figures, for people and for scripts.

use std::time::Duration;

use comfy_table::{CellAlignment, presets};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::stage::Sample;

/// All figures of one call.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    pub rows: Vec<Row>,
}

/// One measurement.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    pub name: String,
    pub jobs: usize,
    pub seconds: f64,
    pub per_second: Option<f64>,
    /// Of an answer, or of what the name says.
    pub latency: Option<Latency>,
    /// Milliseconds of processor time per 1,000 jobs.
    pub cpu_ms_per_thousand: Option<Parts>,
    /// MiB at the end.
    pub memory: Option<Parts>,
    /// Of what the parts could do together, for the rows of `limit`; of the row before, for those of `grow`.
    pub share: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Parts {
    pub service: f64,
    pub postgres: f64,
    pub nats: f64,
}

impl From<Sample> for Parts {
    fn from(sample: Sample) -> Self {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        Parts {
            service: mib(sample.service.memory),
            postgres: mib(sample.postgres.memory),
            nats: mib(sample.nats.memory),
        }
    }
}

impl Row {
    pub fn rate(name: &str, jobs: usize, took: Duration, before: Sample, after: Sample) -> Self {
        let cpu = |before: Duration, after: Duration| {
            after.saturating_sub(before).as_secs_f64() * 1000.0 / (jobs as f64 / 1000.0)
        };
        let known = !after.service.cpu.is_zero();
        Self {
            name: name.to_owned(),
            jobs,
            seconds: took.as_secs_f64(),
            per_second: Some(jobs as f64 / took.as_secs_f64()),
            cpu_ms_per_thousand: known.then(|| Parts {
                service: cpu(before.service.cpu, after.service.cpu),
                postgres: cpu(before.postgres.cpu, after.postgres.cpu),
                nats: cpu(before.nats.cpu, after.nats.cpu),
            }),
            memory: known.then(|| after.into()),
            ..Self::default()
        }
    }

    pub fn latency(mut self, times: &Histogram<u64>) -> Self {
        let at = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1000.0;
        self.latency = Some(Latency {
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: times.max() as f64 / 1000.0,
        });
        self
    }
}

impl Table {
    pub fn text(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "WHAT",
            "PER SECOND",
            "P50 MS",
            "P99 MS",
            "P99.9 MS",
            "CPU MS/1000 (SERVICE POSTGRES NATS)",
            "MIB (SERVICE POSTGRES NATS)",
            "SHARE",
        ]);
        let number = |value: Option<f64>, digits: usize| value.map_or("–".into(), |v| format!("{v:.digits$}"));
        let parts = |parts: Option<Parts>| {
            parts.map_or("–".into(), |p| format!("{:.0} {:.0} {:.0}", p.service, p.postgres, p.nats))
        };
        for row in &self.rows {
            table.add_row([
                row.name.clone(),
                number(row.per_second, 0),
                number(row.latency.map(|l| l.p50_ms), 2),
                number(row.latency.map(|l| l.p99_ms), 2),
                number(row.latency.map(|l| l.p999_ms), 2),
                parts(row.cpu_ms_per_thousand),
                parts(row.memory),
                row.share.map_or("–".into(), |share| format!("{:.0} %", share * 100.0)),
            ]);
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        table.to_string()
    }
}
