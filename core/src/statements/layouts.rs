//! The layouts of objects: what must be looked up in them before they are loaded.

use crate::batch::Layout;
use crate::formats::FormatId;
use crate::object::ObjectRef;
use crate::statements::insert::Planner;
use crate::statements::select::Lines;

/// A query for the fields of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StructureQuery {
    /// For rows of `name` and `type`, one for each column. ClickHouse's error 636 means that the
    /// object is empty: it has no columns.
    Columns(String),
    /// For one row of `line`, or none if the object has no header.
    Header(String),
}

/// The answer to a [`StructureQuery`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StructureAnswer {
    /// The names and the types of all columns.
    Columns(Vec<(String, String)>),
    Header(Option<String>),
}

impl Planner {
    /// Returns the format of the object with this key.
    pub fn format_of(&self, key: &str) -> FormatId {
        self.catalog().formats().of(key)
    }

    /// Returns the layout of all objects of a format; `None` if it must be looked up in each of
    /// them, with [`Planner::structure_query`].
    pub fn layout_of(&self, format: FormatId) -> Option<Layout> {
        todo!()
    }

    /// Returns the query for the fields of an object, of which the answer is an argument of
    /// [`Planner::layout_with`].
    pub fn structure_query(&self, format: FormatId, object: &ObjectRef) -> StructureQuery {
        todo!()
    }

    /// As [`Planner::structure_query`], for content that is not in S3, decompressed.
    pub fn structure_query_of_content(&self, format: FormatId, content: &[u8]) -> StructureQuery {
        todo!()
    }

    /// Returns the layout of an object with these fields.
    ///
    /// # Errors
    ///
    /// Says what is wrong with its header or with its columns.
    pub fn layout_with(
        &self,
        format: FormatId,
        answer: StructureAnswer,
    ) -> Result<Layout, String> {
        todo!()
    }

    /// Returns the records of an object, for a preview.
    pub fn records_of(&self, object: &ObjectRef, layout: &Layout) -> Lines {
        todo!()
    }

    /// Returns the records of content that is not in S3, decompressed, for a preview. `key` is what
    /// routes see.
    pub fn records_of_content(&self, content: &[u8], key: &str, layout: &Layout) -> Lines {
        todo!()
    }

    /// Returns the query for the objects that have at least one record, blank or not: rows of
    /// `path`. It reads the records, since the number of rows that ClickHouse caches for a file can
    /// be wrong.
    pub fn paths_with_records(&self, objects: &[&ObjectRef], layout: &Layout) -> String {
        todo!()
    }

    /// Returns the query for the first 512 bytes of an object as it is stored: one row of `bytes`,
    /// which are written in hexadecimal.
    pub fn first_bytes(&self, object: &ObjectRef) -> String {
        todo!()
    }
}
