//! Where answers go: standard output for what was asked for, standard error for everything else. Tables, colours and
//! laid-out JSON are for terminals; a pipe gets plain columns and the reply as it was received.

use std::io::{IsTerminal, Write};

use comfy_table::{Attribute, Cell, Color};

use super::pretty::pretty;
use crate::telemetry::say;

/// How to show things. Decided once, from the flags and from what the streams are.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub json: bool,
    pub quiet: bool,
    /// Whether somebody reads standard output directly.
    pub terminal: bool,
    color: bool,
}

/// Nobody reads standard output any more (`| head`). No error: it ends the command quietly.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub struct Closed;

/// Meaning of a text; it decides the colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Strong,
    Faint,
    Good,
    Bad,
    Busy,
    Waiting,
}

impl Output {
    pub fn new(json: bool, quiet: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { json, quiet, terminal, color: terminal && !refused }
    }

    /// For tests: as into a pipe, wherever they run.
    #[cfg(test)]
    pub(crate) fn piped() -> Self {
        Self { json: false, quiet: true, terminal: false, color: false }
    }

    /// Prints one line, or several.
    ///
    /// # Errors
    /// [`Closed`] when nobody reads any more.
    pub fn line(&self, text: &str) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Err(Closed.into()),
            other => other.map_err(|e| anyhow::Error::new(e).context("could not write to standard output")),
        }
    }

    /// Prints JSON: to a pipe exactly as it was received, to a terminal laid out.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn json(&self, raw: &[u8]) -> anyhow::Result<()> {
        let text = String::from_utf8_lossy(raw);
        if self.terminal { self.line(&pretty(&text, 0)) } else { self.line(&text) }
    }

    /// Prints JSON on one line, for streams of values.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn json_line(&self, raw: &str) -> anyhow::Result<()> {
        if self.terminal { self.line(&super::pretty::compact(raw)) } else { self.line(raw.trim_end()) }
    }

    /// Says something beside the answer, on standard error.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    pub fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            _ if !self.color => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Strong => "1",
            Tone::Faint => "2",
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Busy => "36",
            Tone::Waiting => "33",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// A cell of a table, coloured if this is a place for colours.
    pub fn cell(&self, tone: Tone, text: impl ToString) -> Cell {
        let cell = Cell::new(text);
        match tone {
            _ if !self.color => cell,
            Tone::Plain => cell,
            Tone::Strong => cell.add_attribute(Attribute::Bold),
            Tone::Faint => cell.add_attribute(Attribute::Dim),
            Tone::Good => cell.fg(Color::DarkGreen),
            Tone::Bad => cell.fg(Color::DarkRed),
            Tone::Busy => cell.fg(Color::DarkCyan),
            Tone::Waiting => cell.fg(Color::DarkYellow),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gets_no_colours() {
        assert_eq!(Output::piped().paint(Tone::Good, "x"), "x");
    }
}
