//! A statement, and what every statement carries.

/// A statement and the settings that go with it, as URL parameters: some of them, such as
/// `max_query_size`, come too late inside the statement.
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

/// Leads from `system.query_log` to what the statement is for.
pub const LOG_COMMENT: &str = "log_comment";

/// Room for thousands of keys of 1,024 bytes, percent-encoded.
pub const MAX_QUERY_BYTES: &str = "67108864";
