//! Statements and their settings.

/// A statement and its settings, which are sent as URL parameters: some of them, such as
/// `max_query_size`, would come too late inside the statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statement {
    pub sql: String,
    pub settings: Vec<(&'static str, String)>,
}

impl Statement {
    pub fn new(sql: impl Into<String>) -> Self {
        Self {
            sql: sql.into(),
            settings: Vec::new(),
        }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.settings.push((name, value.into()));
        self
    }
}

/// The setting whose text in `system.query_log` describes the purpose of the statement.
pub const LOG_COMMENT: &str = "log_comment";

/// The limit for a statement's text: room for thousands of keys of 1,024 bytes, percent-encoded.
pub const MAX_QUERY_BYTES: &str = "67108864";
