//! The statements for ClickHouse, as text.

pub mod ddl;
mod delimited;
mod format_settings;
pub mod framing;
pub mod guard;
pub mod insert;
pub mod layouts;
mod pins;
mod records;
mod reject_kind;
pub mod s3_source;
pub mod select;
mod statement;

pub use pins::{PINNED, Pin};
pub use reject_kind::RejectKind;
pub use statement::{LOG_COMMENT, MAX_QUERY_BYTES, Statement};
