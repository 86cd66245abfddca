//! What a run says of itself while it goes on: how far it has come, and what the next run shall know.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::{kept::keep, settle::clean};

/// Largest checkpoint that is kept, in bytes.
pub const CHECKPOINT_MAX: usize = 256 * 1024;

/// What a run says of itself. What it leaves out stays as it was.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// From 0 to 100.
    pub percent: Option<f64>,
    /// An empty one takes the last one away.
    pub message: Option<String>,
    /// As [`keep_checkpoint`] gives it.
    pub checkpoint: Option<Arc<RawValue>>,
}

impl Update {
    /// With `percent` held between 0 and 100, and the message fit to be stored.
    pub fn of_progress(percent: Option<f64>, message: Option<String>) -> Self {
        let held = |percent: f64| if percent.is_finite() { percent.clamp(0.0, 100.0) } else { 0.0 };
        Self { percent: percent.map(held), message: message.map(clean), checkpoint: None }
    }

    /// Takes over what a newer one says.
    pub fn take_over(&mut self, newer: Update) {
        let Update { percent, message, checkpoint } = newer;
        self.percent = percent.or(self.percent);
        self.message = message.or(self.message.take());
        self.checkpoint = checkpoint.or(self.checkpoint.take());
    }

    pub fn is_empty(&self) -> bool {
        self.percent.is_none() && self.message.is_none() && self.checkpoint.is_none()
    }
}

/// A checkpoint as it is kept.
///
/// # Errors
/// Why it can't be, said of it.
pub fn keep_checkpoint(checkpoint: Box<RawValue>) -> Result<Box<RawValue>, String> {
    let size = checkpoint.get().len();
    if size > CHECKPOINT_MAX {
        return Err(format!("has {size} bytes; at most {CHECKPOINT_MAX} bytes (256 KiB) are kept"));
    }
    keep(checkpoint).map_err(|fault| format!("can't be kept: {fault}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn what_a_later_update_leaves_out_stays_as_it_was() {
        let mut said = Update { checkpoint: Some(Arc::from(raw("7"))), ..Update::of_progress(Some(30.0), None) };
        said.take_over(Update::of_progress(None, Some("page 3".into())));
        said.take_over(Update::default());
        assert_eq!((said.percent, said.message.as_deref()), (Some(30.0), Some("page 3")));
        assert_eq!(said.checkpoint.as_ref().unwrap().get(), "7");
        said.take_over(Update { checkpoint: Some(Arc::from(raw("8"))), ..Update::default() });
        assert_eq!((said.percent, said.checkpoint.unwrap().get()), (Some(30.0), "8"));
    }

    #[test]
    fn a_checkpoint_that_can_not_be_kept_says_why() {
        let kept = |text: &str| keep_checkpoint(raw(text)).map(|kept| kept.get().to_owned());
        let legal = r#"{"page": 4, "text": "a \\\\u0000 b", "n": 18446744073709551616}"#;
        assert_eq!(kept(legal).as_deref(), Ok(legal));
        assert_eq!(kept(r#"["\u0000"]"#).as_deref(), Ok("[\"\u{fffd}\"]"));
        let large = kept(&format!("\"{}\"", "x".repeat(CHECKPOINT_MAX))).unwrap_err();
        assert_eq!(large, "has 262146 bytes; at most 262144 bytes (256 KiB) are kept");
        let deep = kept(&format!("{}{}", "[".repeat(65), "]".repeat(65))).unwrap_err();
        assert!(deep.contains("64"), "{deep}");
        assert!(kept("[1e400]").unwrap_err().contains("/0"));
    }
}
