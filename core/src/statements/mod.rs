//! The statements for ClickHouse, as text.

pub mod ddl;
pub mod framing;
pub mod guard;
pub mod insert;
mod kept;
mod pins;
pub mod s3_source;
pub mod select;
mod statement;

pub use kept::RejectKind;
pub use pins::{PINNED, Pin};
pub use statement::{LOG_COMMENT, MAX_QUERY_BYTES, Statement};
