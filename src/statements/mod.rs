//! SQL, as text: what ClickHouse is asked to do.

pub mod ddl;
pub mod framing;
pub mod guard;
pub mod insert;
pub mod select;
