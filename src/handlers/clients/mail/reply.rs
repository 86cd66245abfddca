//! What an SMTP server says: read as bytes and acted on by its code alone (RFC 5321, 4.2).
//!
//! Servers answer in any charset, without a text, and in several lines. Bounded, since anybody may be at the other end.

use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest line of a reply in bytes; RFC 5321 allows 512, real servers exceed it.
const LINE_MAX: usize = 8 * 1024;
/// Most lines of one reply.
const LINES_MAX: usize = 200;

/// A server's answer to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// 200 to 599.
    pub code: u16,
    /// The texts behind the codes, a line each.
    pub lines: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the server closed the connection")]
    Closed,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("what the server says is no SMTP")]
    NoSmtp,
}

impl Reply {
    pub fn is_positive(&self) -> bool {
        self.code < 400
    }

    /// The code and the text, as people read it.
    pub fn text(&self) -> String {
        format!("{} {}", self.code, self.lines.join(" ")).trim().to_owned()
    }
}

/// Reads replies, and keeps what a server sent too early.
#[derive(Default)]
pub(super) struct Reader {
    buffer: Vec<u8>,
}

impl Reader {
    /// # Errors
    /// The connection has ended, or something else than SMTP came.
    pub async fn reply(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Result<Reply, Error> {
        let (mut code, mut lines) = (None, Vec::new());
        loop {
            let line = self.line(stream).await?;
            let (number, more, text) = parse(&line).ok_or(Error::NoSmtp)?;
            // The last line counts where they differ.
            code = Some(number).or(code);
            lines.push(text);
            match code {
                Some(code) if !more => return Ok(Reply { code, lines }),
                _ if lines.len() >= LINES_MAX => return Err(Error::NoSmtp),
                _ => {}
            }
        }
    }

    /// Whether the server has said more than it was asked for.
    pub fn has_more(&self) -> bool {
        !self.buffer.is_empty()
    }

    async fn line(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.truncate(line.trim_ascii_end().len());
                return Ok(line);
            }
            if self.buffer.len() > LINE_MAX {
                return Err(Error::NoSmtp);
            }
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(Error::Closed);
            }
        }
    }
}

/// The code, whether further lines follow, and the text.
fn parse(line: &[u8]) -> Option<(u16, bool, String)> {
    let (digits, rest) = line.split_at_checked(3)?;
    let code: u16 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let (more, text) = match rest {
        [] => (false, rest),
        [b'-', text @ ..] => (true, text),
        [b' ' | b'\t', text @ ..] => (false, text),
        _ => return None,
    };
    (200..600).contains(&code).then(|| (code, more, String::from_utf8_lossy(text).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> Result<Reply, Error> {
        Reader::default().reply(&mut &*bytes).await
    }

    fn reply(code: u16, lines: &[&str]) -> Reply {
        Reply { code, lines: lines.iter().map(|line| (*line).to_owned()).collect() }
    }

    #[tokio::test]
    async fn replies_are_read_by_their_code() {
        assert_eq!(read(b"250 2.0.0 Ok\r\n").await.unwrap(), reply(250, &["2.0.0 Ok"]));
        assert_eq!(read(b"250\r\n").await.unwrap(), reply(250, &[""]));
        assert_eq!(read(b"250 \n").await.unwrap(), reply(250, &[""]));
        assert_eq!(read(b"250-a\r\n250-\r\n250 b\r\n").await.unwrap(), reply(250, &["a", "", "b"]));
        assert_eq!(read(b"250-a\r\n250\r\n").await.unwrap(), reply(250, &["a", ""]));
        // GBK for "no such user", and Latin-1.
        assert_eq!(read(b"550 \xce\xde\xb4\xcb\xd3\xc3\xbb\xa7\r\n").await.unwrap().code, 550);
        assert_eq!(read(b"220 Gr\xfc\xdfe\r\n").await.unwrap().text(), "220 Gr\u{fffd}\u{fffd}e");
    }

    #[tokio::test]
    async fn what_is_no_smtp_is_refused_and_bounded() {
        let endless = b"250-x\r\n".repeat(LINES_MAX + 1);
        let long = [b"250 ".as_slice(), &b"x".repeat(2 * LINE_MAX)].concat();
        for bytes in
            [b"HTTP/1.1 400 Bad Request\r\n".as_slice(), b"25 x\r\n", b"250x\r\n", b"999 x\r\n", &endless, &long]
        {
            assert!(matches!(read(bytes).await, Err(Error::NoSmtp)), "{:?}", &bytes[..20.min(bytes.len())]);
        }
        assert!(matches!(read(b"250-a\r\n").await, Err(Error::Closed)));
    }

    #[tokio::test]
    async fn what_came_too_early_is_noticed() {
        let mut reader = Reader::default();
        let mut stream: &[u8] = b"220 go\r\n250 evil\r\n";
        assert_eq!(reader.reply(&mut stream).await.unwrap().code, 220);
        assert!(reader.has_more());
    }
}
