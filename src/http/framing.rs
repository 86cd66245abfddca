//! Looks at the raw bytes of request heads for what two servers could read in two ways (request smuggling).
//!
//! The HTTP library resolves a length that is given twice and takes bare line feeds, silently and before anybody can
//! see it. A proxy in front may decide otherwise, so we refuse instead. Pure: bytes in, verdict out.

/// Largest head, request line included. The library answers 431 beyond it.
pub const MAX_HEAD: usize = 32 * 1024;

/// Follows one connection.
#[derive(Debug, Default)]
pub struct Framing {
    place: Place,
    /// The line that is being read, without its end.
    line: Vec<u8>,
    /// Bytes of this head so far.
    head: usize,
    length: Option<u64>,
    chunked: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Place {
    /// Before the first byte of a request.
    #[default]
    Between,
    Head,
    /// So many bytes of the body are to come.
    Body(u64),
    /// What follows is not looked at: the connection ends after this request.
    Last,
}

/// What is wrong with a head, for the caller.
pub type Ambiguity = &'static str;

impl Framing {
    /// Whether a head has begun and has not ended yet.
    pub fn in_head(&self) -> bool {
        self.place == Place::Head
    }

    /// Takes the next bytes of the connection.
    ///
    /// # Errors
    /// The first ambiguity; the connection must end with this request then.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Ambiguity> {
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.place {
                Place::Last => return Ok(()),
                Place::Body(left) => {
                    let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    bytes = &bytes[taken..];
                    self.body(left - taken as u64);
                }
                Place::Between | Place::Head => {
                    bytes = rest;
                    if let Err(ambiguity) = self.in_line(byte) {
                        self.place = Place::Last;
                        return Err(ambiguity);
                    }
                }
            }
        }
        Ok(())
    }

    fn body(&mut self, left: u64) {
        self.place = if left == 0 { Place::Between } else { Place::Body(left) };
    }

    fn in_line(&mut self, byte: u8) -> Result<(), Ambiguity> {
        self.head += 1;
        // Some slack, so that the library's own answer comes first.
        if self.head > MAX_HEAD + 1024 {
            return Err("the head of the request is too long");
        }
        if byte != b'\n' {
            self.line.push(byte);
            if self.line != b"\r" {
                self.place = Place::Head;
            }
            return Ok(());
        }
        if self.line.pop() != Some(b'\r') || self.line.contains(&b'\r') {
            return Err("every line of the head must end in CRLF, and hold no other CR or LF");
        }
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            return self.end_of_line(&line);
        }
        // Empty lines before a request mean nothing (RFC 9112, section 2.2).
        if self.place == Place::Head {
            self.end_of_head();
        }
        self.head = 0;
        Ok(())
    }

    fn end_of_line(&mut self, line: &[u8]) -> Result<(), Ambiguity> {
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err("a header must stand on one line");
        }
        let mut parts = line.splitn(2, |byte| *byte == b':');
        // The request line has no name of interest before its first colon.
        let name = parts.next().unwrap_or_default().trim_ascii_end();
        let value = parts.next().unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = std::str::from_utf8(value).ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
            let Some(length) = digits.and_then(|digits| digits.parse().ok()) else {
                return Err("Content-Length must be one number");
            };
            if self.length.replace(length).is_some() {
                return Err("Content-Length must be given once");
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err("Transfer-Encoding must be given once and be 'chunked'");
            }
            self.chunked = true;
        }
        if self.chunked && self.length.is_some() {
            return Err("give Content-Length or Transfer-Encoding, not both");
        }
        Ok(())
    }

    fn end_of_head(&mut self) {
        let length = self.length.take().unwrap_or(0);
        // The ends of chunks are the library's affair, so a connection ends after a chunked request.
        match std::mem::take(&mut self.chunked) {
            true => self.place = Place::Last,
            false => self.body(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &str) -> Result<Framing, Ambiguity> {
        let mut framing = Framing::default();
        framing.feed(text.as_bytes()).map(|()| framing)
    }

    #[test]
    fn one_clear_length_passes_whatever_the_pieces_are() {
        let text = "\r\nPOST /jobs HTTP/1.1\r\nHost: a\r\ncontent-length: 3\r\n\r\n\nab\
            GET /x:y HTTP/1.1\r\nHost: a\r\n\r\n";
        for size in 1..text.len() {
            let mut framing = Framing::default();
            for piece in text.as_bytes().chunks(size) {
                assert_eq!(framing.feed(piece), Ok(()), "in pieces of {size}");
            }
            assert_eq!(framing.place, Place::Between);
        }
    }

    #[test]
    fn after_a_chunked_body_nothing_is_looked_at() {
        let framing = judge("POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\n").unwrap();
        assert_eq!(framing.place, Place::Last);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for headers in [
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: 1\r\nContent-Length: 2",
            "Content-Length: 1, 1",
            "Content-Length: +1",
            "Content-Length: ",
            "Content-Length: 99999999999999999999",
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\ncontent-length: 1",
            "Content-Length : 1\r\nContent-Length: 2",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding:\r\n chunked",
            "X: a\r\n\tb",
            "X: a\nContent-Length: 1",
            "X: a\rContent-Length: 1",
        ] {
            assert!(judge(&format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n")).is_err(), "{headers:?}");
        }
        assert!(judge("GET / HTTP/1.1\n\n").is_err());
    }

    #[test]
    fn a_head_without_end_costs_bounded_memory() {
        let mut framing = Framing::default();
        let refused = (0..100).find(|_| framing.feed(&[b'a'; 4096]).is_err());
        assert_eq!(refused, Some(8));
        assert!(framing.line.capacity() <= 3 * MAX_HEAD);
    }
}
