//! `enqueue --jsonl`: a stream of requests. Lines are read as they are needed, gathered into requests, a few of which are
//! on their way at any time; answers are told in the order of the lines. Memory does not depend on the input's size.

mod batch;
mod lines;
mod report;
mod send;

use std::{
    future::ready,
    io::IsTerminal,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use futures_util::{Stream, StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::{
    io::{AsyncBufRead, BufReader},
    sync::oneshot,
};

use self::{
    batch::{Batch, Batcher, Item},
    lines::{Line, Lines},
    report::Report,
    send::Course,
};
use super::{
    exit::{Exit, UsageError},
    output::Output,
};
use crate::{client::Client, supervise, telemetry::say};

/// Requests that are on their way at the same time.
const IN_FLIGHT: usize = 4;
/// Largest request, even if the broker takes more: one that is lost is sent again as a whole.
const MAX_REQUEST: usize = 1024 * 1024;
const BUFFER: usize = 256 * 1024;
/// An input that pauses this long is not waited for: what has gathered is sent.
const PAUSE: Duration = Duration::from_millis(50);

/// The lines to enqueue, not read yet.
pub struct Input {
    name: String,
    reader: Pin<Box<dyn AsyncBufRead + Send>>,
    /// Total size where it is known.
    size: Option<u64>,
}

impl Input {
    /// # Errors
    /// A file that can't be opened.
    pub fn open(name: &str) -> anyhow::Result<Self> {
        if name == "-" {
            if std::io::stdin().is_terminal() {
                say("type a request per line; Ctrl-D ends it");
            }
            let reader = Box::pin(BufReader::with_capacity(BUFFER, tokio::io::stdin()));
            return Ok(Self { name: "standard input".to_owned(), reader, size: None });
        }
        let unreadable = || UsageError(format!("could not read {name}"));
        let file = std::fs::File::open(name).with_context(unreadable)?;
        let about = file.metadata().with_context(unreadable)?;
        let reader = Box::pin(BufReader::with_capacity(BUFFER, tokio::fs::File::from_std(file)));
        Ok(Self { name: name.to_owned(), reader, size: about.is_file().then_some(about.len()) })
    }
}

pub async fn run(input: Input, client: &Client, out: &Output) -> anyhow::Result<Exit> {
    let bar = progress_bar(input.size, out);
    let max = client.max_request().min(MAX_REQUEST);
    let source = Source {
        lines: Lines::new(input.reader),
        batcher: Batcher::new(max).answered_within(max),
        failed: None,
        done: false,
    };
    let course = Course::default();
    let interrupted = Arc::new(AtomicBool::new(false));
    let mut report = Report::new(&input.name, *out, bar);

    let course = &course;
    let answers = source
        .batches()
        .take_until(interruption(&interrupted))
        .take_while(|_| ready(!course.is_stopped()))
        .map(|read| async move {
            let answer = send::send(read.batch, client, course).await;
            (answer, read.bytes, read.failed)
        })
        // In order, so that what is told of the lines can be followed.
        .buffered(IN_FLIGHT);
    let mut answers = std::pin::pin!(answers);
    while let Some((answer, bytes, failed)) = answers.next().await {
        // What is on its way is waited for in any case: its outcome must be told.
        if !report.add(answer, bytes, failed) {
            course.stop();
        }
    }
    report.finish(interrupted.load(Ordering::Relaxed))
}

/// Ends at the first Ctrl-C, so that what is on its way can still be told; the second one ends the program.
fn interruption(flag: &Arc<AtomicBool>) -> oneshot::Receiver<()> {
    let (tell, told) = oneshot::channel();
    let flag = flag.clone();
    supervise::spawn("interruption", async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            flag.store(true, Ordering::Relaxed);
            let _ = tell.send(());
            let _ = tokio::signal::ctrl_c().await;
            std::process::exit(Exit::Interrupted as i32);
        }
        // Without a way to hear of it there is no interruption; dropping `tell` would be one.
        std::future::pending::<()>().await;
    });
    told
}

/// Lines that become batches.
struct Source<R> {
    lines: Lines<R>,
    batcher: Batcher,
    failed: Option<std::io::Error>,
    done: bool,
}

/// A batch as it was read.
struct Read {
    batch: Batch,
    /// Input bytes up to here.
    bytes: u64,
    /// Why the input ends here.
    failed: Option<std::io::Error>,
}

impl<R: AsyncBufRead + Unpin> Source<R> {
    fn batches(self) -> impl Stream<Item = Read> {
        stream::unfold(self, |mut source| async {
            let batch = source.next().await?;
            let failed = source.failed.take();
            Some((Read { batch, bytes: source.lines.bytes(), failed }, source))
        })
    }

    async fn next(&mut self) -> Option<Batch> {
        let max = self.batcher.max_line();
        while !self.done {
            let Ok(read) = tokio::time::timeout(PAUSE, self.lines.next(max)).await else {
                match self.batcher.take() {
                    Some(batch) => return Some(batch),
                    None => continue,
                }
            };
            let full = match read {
                Ok(Some((_, Line::Text(text)))) if text.iter().all(u8::is_ascii_whitespace) => None,
                Ok(Some((line, Line::Text(text)))) => self.batcher.add(Item::check(line, text)),
                Ok(Some((line, Line::TooLong { bytes }))) => {
                    let fault = format!("{bytes} bytes; a request takes at most {max}");
                    self.batcher.add(Item { line, request: Err(fault) })
                }
                Ok(None) => {
                    self.done = true;
                    None
                }
                Err(e) => {
                    self.done = true;
                    self.failed = Some(e);
                    // Even if no line has gathered: the failure has to be told.
                    return Some(self.batcher.take().unwrap_or_default());
                }
            };
            if full.is_some() {
                return full;
            }
        }
        self.batcher.take()
    }
}

fn progress_bar(size: Option<u64>, out: &Output) -> ProgressBar {
    if out.quiet {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{bar:30} {percent:>3} %  {msg}  {elapsed}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed}"),
    };
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn batches(text: &'static [u8], max: usize) -> Vec<(Vec<u64>, usize, u64)> {
        let source = Source { lines: Lines::new(text), batcher: Batcher::new(max), failed: None, done: false };
        let shape = |read: Read| {
            let unfit = read.batch.items.iter().filter(|item| item.request.is_err()).count();
            (read.batch.items.iter().map(|item| item.line).collect(), unfit, read.bytes)
        };
        source.batches().map(shape).collect().await
    }

    #[tokio::test]
    async fn blank_lines_are_passed_over_and_numbers_stay_those_of_the_file() {
        let text = b"{\"a\":1}\n\n  \nnope\n{\"a\":2}";
        assert_eq!(batches(text, 1000).await, [(vec![1, 4, 5], 1, text.len() as u64)]);
        assert_eq!(batches(b"", 1000).await, []);
    }

    #[tokio::test]
    async fn a_line_that_no_request_can_hold_is_told_and_does_not_stop_the_rest() {
        let text = b"{\"a\":1}\n{\"a\":\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"}\n{\"a\":2}\n";
        let found = batches(text, 30).await;
        assert_eq!(found, [(vec![1, 2, 3], 1, text.len() as u64)]);
    }

    #[tokio::test]
    async fn an_input_that_pauses_is_not_waited_for() {
        use tokio::io::AsyncWriteExt;
        let (mut writer, reader) = tokio::io::duplex(100);
        let reader = BufReader::new(reader);
        let source = Source { lines: Lines::new(reader), batcher: Batcher::new(1000), failed: None, done: false };
        let mut batches = std::pin::pin!(source.batches());
        writer.write_all(b"{\"a\":1}\n{\"a\"").await.unwrap();
        let first = batches.next().await.unwrap();
        assert_eq!(first.batch.body(|_| true).unwrap(), r#"{"jobs":[{"a":1}]}"#);
        writer.write_all(b":2}\n").await.unwrap();
        drop(writer);
        let second = batches.next().await.unwrap();
        assert_eq!(second.batch.body(|_| true).unwrap(), r#"{"jobs":[{"a":2}]}"#);
        assert!(batches.next().await.is_none());
    }
}
