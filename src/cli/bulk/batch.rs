//! Gathers lines into requests that are neither too long nor too many. Pure.

use serde::{Deserialize, de::IgnoredAny};

/// Most jobs of one request. Source: wire contract, `enqueueMany`.
pub const MAX_JOBS: usize = 1000;
/// Bytes of the answer to one job, at most, as the service counts them.
const RESULT_MAX: usize = 400;
const OPEN: &str = r#"{"jobs":["#;
const CLOSE: &str = "]}";

/// A line that may be sent, or why it may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// From 1.
    pub line: u64,
    pub request: Result<Request, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub json: String,
    /// Whether it may be sent twice: it has an idempotency key.
    pub keyed: bool,
}

impl Item {
    /// Checks as much as is needed so that one bad line can't break the request that it is sent in.
    pub fn check(line: u64, text: Vec<u8>) -> Self {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Peek {
            #[serde(default)]
            idempotency_key: Option<IgnoredAny>,
        }
        let checked = |text: Vec<u8>| {
            let json = String::from_utf8(text).map_err(|_| "not UTF-8 text".to_owned())?;
            if !json.trim_start().starts_with('{') {
                return Err("not a JSON object; each line is a request like {\"type\": …, \"payload\": …}".to_owned());
            }
            let peek: Peek = serde_json::from_str(&json).map_err(|e| format!("not valid JSON: {}", place(&e)))?;
            Ok(Request { json, keyed: peek.idempotency_key.is_some() })
        };
        Self { line, request: checked(text) }
    }

    fn len(&self) -> usize {
        self.request.as_ref().map_or(0, |request| request.json.len() + 1)
    }
}

/// The parser counts lines; here there is only one.
fn place(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

/// Lines that are sent together, with those between them that are not sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub items: Vec<Item>,
}

impl Batch {
    /// The request's body with those of its lines that are good and `wanted`; `None` when there are none.
    pub fn body(&self, wanted: impl Fn(usize) -> bool) -> Option<String> {
        let mut body = String::from(OPEN);
        for (i, item) in self.items.iter().enumerate() {
            if let (Ok(request), true) = (&item.request, wanted(i)) {
                if body.len() > OPEN.len() {
                    body.push(',');
                }
                body.push_str(&request.json);
            }
        }
        let empty = body.len() == OPEN.len();
        body.push_str(CLOSE);
        (!empty).then_some(body)
    }
}

/// Cuts a stream of lines into batches.
#[derive(Debug)]
pub struct Batcher {
    max_bytes: usize,
    max_jobs: usize,
    bytes: usize,
    batch: Batch,
}

impl Batcher {
    /// `max_bytes`: largest body of a request.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, max_jobs: MAX_JOBS, bytes: OPEN.len() + CLOSE.len(), batch: Batch::default() }
    }

    /// For a broker that takes messages of so many bytes: answers must fit as well.
    pub fn answered_within(mut self, max_payload: usize) -> Self {
        self.max_jobs = (max_payload / RESULT_MAX).saturating_sub(3).clamp(1, MAX_JOBS);
        self
    }

    /// Longest line that fits into a request.
    pub fn max_line(&self) -> usize {
        self.max_bytes.saturating_sub(OPEN.len() + CLOSE.len() + 1)
    }

    /// Adds a line, and gives the batch that is full without it.
    pub fn add(&mut self, item: Item) -> Option<Batch> {
        let full = self.batch.items.len() >= self.max_jobs || self.bytes + item.len() > self.max_bytes;
        let done = if full { self.take() } else { None };
        self.bytes += item.len();
        self.batch.items.push(item);
        done
    }

    /// What has gathered, if anything.
    pub fn take(&mut self) -> Option<Batch> {
        self.bytes = OPEN.len() + CLOSE.len();
        let batch = std::mem::take(&mut self.batch);
        (!batch.items.is_empty()).then_some(batch)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(line: u64, text: &str) -> Item {
        Item::check(line, text.into())
    }

    #[test]
    fn a_bad_line_is_told_and_can_not_break_its_neighbours() {
        let refused = |text: &[u8]| Item::check(7, text.to_vec()).request.unwrap_err();
        assert_eq!(refused(b"\xff"), "not UTF-8 text");
        assert!(refused(b"[1]").starts_with("not a JSON object"));
        assert!(refused(br#"{"a":1},{"b":2}"#).contains("trailing characters at column 8"));
        assert!(refused(b"{\"a\":").contains("not valid JSON"));
        let batch = Batch { items: vec![item(1, r#"{"a":1}"#), item(2, "nope"), item(3, r#"{"idempotencyKey":"k"}"#)] };
        assert_eq!(batch.body(|_| true).unwrap(), r#"{"jobs":[{"a":1},{"idempotencyKey":"k"}]}"#);
        assert_eq!(batch.body(|i| i == 2).unwrap(), r#"{"jobs":[{"idempotencyKey":"k"}]}"#);
        assert_eq!(batch.body(|i| i == 1), None);
        assert!(batch.items[2].request.as_ref().unwrap().keyed && !batch.items[0].request.as_ref().unwrap().keyed);
    }

    proptest! {
        #[test]
        fn no_request_is_too_long_or_has_too_many_and_no_line_is_lost(sizes in proptest::collection::vec(0usize..400, 0..3000), max in 500usize..20_000) {
            let mut batcher = Batcher::new(max);
            let mut batches = Vec::new();
            for (i, size) in sizes.iter().enumerate() {
                let text = format!(r#"{{"a":"{}"}}"#, "x".repeat(*size));
                prop_assert!(text.len() <= batcher.max_line());
                batches.extend(batcher.add(item(i as u64, &text)));
            }
            batches.extend(batcher.take());
            prop_assert_eq!(batcher.take(), None);
            for batch in &batches {
                prop_assert!(batch.items.len() <= MAX_JOBS);
                prop_assert!(batch.body(|_| true).unwrap().len() <= max);
            }
            let lines: Vec<u64> = batches.iter().flat_map(|batch| batch.items.iter().map(|item| item.line)).collect();
            prop_assert_eq!(lines, (0..sizes.len() as u64).collect::<Vec<_>>());
        }
    }
}
