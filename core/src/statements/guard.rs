//! The texts of guards: conditions that a statement checks as it starts, and that stop it.

/// The text of the error with which a guard stops a statement of a fenced batch. ClickHouse's error
/// code is 395, `FUNCTION_THROW_IF_VALUE_IS_NON_ZERO`, for both texts.
pub const FENCED_TEXT: &str = "sluice: this batch is fenced";
/// The text of the error if an object is not what was announced.
pub const CHANGED_TEXT: &str = "sluice: an object changed since it was announced";
