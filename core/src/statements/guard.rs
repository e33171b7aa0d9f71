//! The guards in statements: conditions that a statement checks when it starts, and refuses to run.

/// The text with which the guard in a statement refuses to start; ClickHouse's own error is 395,
/// `FUNCTION_THROW_IF_VALUE_IS_NON_ZERO`, for both.
pub const FENCED_TEXT: &str = "sluice: this batch is fenced";
pub const CHANGED_TEXT: &str = "sluice: an object changed since it was announced";
