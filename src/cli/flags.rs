//! Flags that set a key of the configuration: its last layer.

/// (dotted key, value) pairs, as [`crate::config::load`] takes them.
#[derive(Debug, Default)]
pub struct Flags(Vec<(&'static str, String)>);

impl Flags {
    /// Sets `key` if the flag was given.
    pub fn add(&mut self, key: &'static str, value: Option<impl ToString>) {
        self.0.extend(value.map(|value| (key, value.to_string())));
    }

    pub fn as_slice(&self) -> &[(&'static str, String)] {
        &self.0
    }
}
