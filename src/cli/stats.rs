//! `stats`: how many jobs are where.

use std::time::Duration;

use clap::Args;
use comfy_table::{Cell, CellAlignment};
use serde_json::json;

use super::{
    args,
    exit::Exit,
    output::{Output, Tone},
    table::Columns,
    text::{clean, count, local, span},
};
use crate::{
    client::{Client, Counts, Stats, read},
    job::span::rounded,
    ops::Verb,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  queue-service stats
  queue-service stats --watch          every two seconds, until Ctrl-C
  queue-service stats --watch=10s --json >> stats.jsonl
  queue-service stats --json | jq .failed")]
pub struct StatsArgs {
    /// Show them again and again
    #[arg(long, value_name = "SPAN", num_args = 0..=1, require_equals = true, default_missing_value = "2s", value_parser = args::span)]
    watch: Option<Duration>,
}

pub async fn run(args: StatsArgs, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    let Some(pause) = args.watch else {
        let answer = client.call(Verb::GetStats, &json!({})).await?;
        if out.json {
            out.json(&answer)?;
        } else {
            out.line(&table(&read(Verb::GetStats, &answer)?, out))?;
        }
        return Ok(Exit::Done);
    };
    let mut ticks = tokio::time::interval(pause.max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = client.call(Verb::GetStats, &json!({})).await?;
        if out.json {
            out.json_line(&String::from_utf8_lossy(&answer))?;
            continue;
        }
        let shown = format!("{}\n\n{}", local(chrono::Utc::now()), table(&read(Verb::GetStats, &answer)?, out));
        if out.terminal {
            // Written over what was there, line by line, which does not flicker as clearing the screen does.
            let lines: Vec<String> = shown.lines().map(|line| format!("{line}\u{1b}[K")).collect();
            out.line(&format!("\u{1b}[H{}\n\u{1b}[J", lines.join("\n")))?;
        } else {
            out.line(&format!("{shown}\n"))?;
        }
    }
}

fn table(stats: &Stats, out: &Output) -> String {
    let row = |name: &str, counts: &Counts, name_tone: Tone| -> Vec<Cell> {
        let number = |n: u64, tone: Tone| {
            let tone = if n == 0 { Tone::Faint } else { tone };
            out.cell(tone, count(n)).set_alignment(CellAlignment::Right)
        };
        let total = counts.pending + counts.processing + counts.completed + counts.failed + counts.cancelled;
        vec![
            out.cell(name_tone, clean(name)),
            number(counts.pending, Tone::Plain),
            number(counts.processing, Tone::Busy),
            number(counts.completed, Tone::Good),
            number(counts.failed, Tone::Bad),
            number(counts.cancelled, Tone::Waiting),
            number(total, Tone::Plain),
        ]
    };
    let mut rows: Vec<Vec<Cell>> = stats.by_type.iter().map(|(name, counts)| row(name, counts, Tone::Plain)).collect();
    rows.push(row("all", &stats.all, Tone::Strong));
    let titles = ["TYPE", "PENDING", "PROCESSING", "COMPLETED", "FAILED", "CANCELLED", "TOTAL"];
    let columns = Columns { titles: &titles, ..Columns::default() };
    let oldest = match stats.oldest_pending_seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()) {
        Some(age) => {
            format!("the oldest due job waits for {}", span(chrono::TimeDelta::from_std(age).unwrap_or_default()))
        }
        None => "no due job waits".to_owned(),
    };
    let rates = format!("{} completed, {} failed", clean(&stats.completion_rate), clean(&stats.failure_rate));
    let mut text = format!("{}\n{rates}; {oldest}", out.table(&columns, rows));
    let paused_age = stats.oldest_paused_seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
    let since = paused_age.map(|age| format!(", the oldest of their due jobs for {}", rounded(age)));
    for (types, what, since) in
        [(&stats.unattended, "nobody answers for", None), (&stats.paused, "paused, and not counted as waiting:", since)]
    {
        if !types.is_empty() {
            let line = format!("{what} {}{}", clean(&types.join(", ")), since.unwrap_or_default());
            text.push('\n');
            text.push_str(&out.paint(Tone::Waiting, &line));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_row_has_the_sums_that_were_answered() {
        let stats: Stats = serde_json::from_str(
            r#"{"total":1005,"pending":5,"processing":0,"completed":1000,"failed":0,"cancelled":0,"completionRate":"99.50%",
                "failureRate":"0.00%","byType":{"a":{"completed":1000},"b":{"pending":5}},"oldestPendingSeconds":2.5}"#,
        )
        .unwrap();
        let text = table(&stats, &Output::piped());
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[3], ["all", "5", "0", "1,000", "0", "0", "1,005"]);
        assert!(text.ends_with("99.50% completed, 0.00% failed; the oldest due job waits for 2.5s"), "{text}");
    }
}
