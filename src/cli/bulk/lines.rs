//! Reads lines with a bound on their length: a file of any size passes through, and none of it is kept.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Reader of lines. [`Lines::next`] may be dropped and called again; nothing is lost then.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    /// Bytes of a line that is too long and not kept.
    skipped: usize,
    number: u64,
    bytes: u64,
}

/// A line, or how long it would have been.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Text(Vec<u8>),
    TooLong { bytes: usize },
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, line: Vec::new(), skipped: 0, number: 0, bytes: 0 }
    }

    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next line without its end and its number from 1; `None` at the end. Lines longer than `max` are passed over.
    ///
    /// # Errors
    /// The input can't be read.
    pub async fn next(&mut self, max: usize) -> io::Result<Option<(u64, Line)>> {
        loop {
            let chunk = self.reader.fill_buf().await?;
            if chunk.is_empty() {
                let nothing = self.line.is_empty() && self.skipped == 0;
                return Ok(if nothing { None } else { Some(self.finish()) });
            }
            let end = chunk.iter().position(|b| *b == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            // One more is let in for the '\r' of other systems.
            if self.skipped > 0 || self.line.len() + part.len() > max + 1 {
                self.skipped += self.line.len() + part.len();
                self.line = Vec::new();
            } else {
                self.line.extend_from_slice(part);
            }
            let used = end.map_or(chunk.len(), |end| end + 1);
            self.bytes += used as u64;
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Some(self.finish()));
            }
        }
    }

    fn finish(&mut self) -> (u64, Line) {
        self.number += 1;
        let mut text = std::mem::take(&mut self.line);
        if text.last() == Some(&b'\r') {
            text.pop();
        }
        match std::mem::take(&mut self.skipped) {
            0 => (self.number, Line::Text(text)),
            bytes => (self.number, Line::TooLong { bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::BufReader;

    use super::*;

    async fn all(text: &'static str, buffer: usize, max: usize) -> Vec<(u64, Line)> {
        let mut lines = Lines::new(BufReader::with_capacity(buffer, text.as_bytes()));
        let mut found = Vec::new();
        while let Some(line) = lines.next(max).await.unwrap() {
            found.push(line);
        }
        assert_eq!(lines.bytes(), text.len() as u64);
        found
    }

    #[tokio::test]
    async fn lines_are_numbered_and_long_ones_passed_over_whatever_the_buffer() {
        let text = |line: &str| Line::Text(line.into());
        for buffer in [1, 2, 3, 7, 100] {
            let found = all("ab\r\n\n1234567890\nlast", buffer, 4).await;
            let expected = vec![(1, text("ab")), (2, text("")), (3, Line::TooLong { bytes: 10 }), (4, text("last"))];
            assert_eq!(found, expected, "buffer of {buffer}");
            assert_eq!(all("", buffer, 4).await, []);
            assert_eq!(all("\n", buffer, 4).await, [(1, text(""))]);
        }
    }
}
