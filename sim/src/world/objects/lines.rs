//! What must have become of each line of an object in a world with replays of rejects.

use std::collections::{BTreeMap, BTreeSet};

use sluice::statements::select::Target;

use super::{Fate, Objects, SAMPLES, Uploaded};
use crate::server::{SimServer, TableLine};
use crate::world::declarations::final_table;

/// The path and the etag of an object.
type SourceOf = (String, String);

/// What the tables have of an object.
#[derive(Debug, Default)]
struct FoundLines {
    lines: Vec<TableLine>,
    /// The sum of its counts in `object_rows`.
    counted: u64,
}

impl Objects {
    /// Returns how the lines in the tables differ from those that must be there: once all rejects
    /// are replayed, each line of a loaded object is in its table once. It belongs to the batch that
    /// has loaded the object, or to a loaded replay.
    pub(in crate::world) fn line_differences(&self, server: &SimServer) -> Vec<String> {
        let state = self.state();
        let mut found = found_lines(server);
        let mut differences = Vec::new();
        for (number, uploaded) in &state.uploaded {
            let object = &uploaded.object;
            let body = String::from_utf8_lossy(&self.uploads[*number].body);
            let of_object = found.remove(&(object.path(), object.etag.clone()));
            let batches = server.loaded_batches(object.id());
            let of_object = of_object.unwrap_or_default();
            if let Some(difference) = uploaded.line_difference(&body, &of_object, batches) {
                differences.push(format!("{object} ({}): {difference}", object.etag));
            }
        }
        for ((path, etag), of_object) in found {
            if !path.starts_with(SAMPLES) {
                differences.push(format!(
                    "lines of an unknown object {path} ({etag}): {of_object:?}"
                ));
            }
        }
        differences
    }
}

impl Uploaded {
    fn line_difference(&self, body: &str, found: &FoundLines, batches: usize) -> Option<String> {
        let is_absent = batches == 0 && found.lines.is_empty() && found.counted == 0;
        match self.fate {
            Fate::LoadedOrNot | Fate::NotLoaded if is_absent => None,
            Fate::NotLoaded => Some(format!(
                "must not be loaded; {batches} loaded batches claim it; found: {found:?}"
            )),
            Fate::Loaded | Fate::LoadedOrNot => found.problem(body, batches),
        }
    }
}

impl FoundLines {
    /// Returns why these are not the lines of a loaded object, if so.
    fn problem(&self, body: &str, batches: usize) -> Option<String> {
        if batches != 1 {
            return Some(format!("{batches} loaded batches claim it"));
        }
        let mut by_number: BTreeMap<u64, Vec<&TableLine>> = BTreeMap::new();
        for line in &self.lines {
            by_number.entry(line.number).or_default().push(line);
        }
        for (number, line) in (0..).zip(body.lines()) {
            let Some(table) = final_table(line) else {
                continue;
            };
            match by_number.remove(&number).as_deref() {
                Some([found]) if found.table == table && found.is_loaded => {}
                found => return Some(format!("line {number} must be in {table}: {found:?}")),
            }
        }
        if !by_number.is_empty() {
            return Some(format!("has other lines: {by_number:?}"));
        }
        let (moved, loaded): (Vec<&TableLine>, Vec<&TableLine>) =
            self.lines.iter().partition(|line| line.is_replay);
        let loaded: BTreeSet<_> = loaded.iter().map(|line| line.batch).collect();
        if loaded.len() > 1 {
            return Some(format!("has lines of several batches: {loaded:?}"));
        }
        // The batch has counted all lines, and each replay those that it has moved.
        let expected = body.lines().count() + moved.len();
        (self.counted != expected as u64)
            .then(|| format!("{} lines are counted, not {expected}", self.counted))
    }
}

/// Returns the lines and the counts in the tables by object.
fn found_lines(server: &SimServer) -> BTreeMap<SourceOf, FoundLines> {
    let mut found: BTreeMap<SourceOf, FoundLines> = BTreeMap::new();
    for line in server.lines() {
        let source = (line.path.clone(), line.etag.clone());
        found.entry(source).or_default().lines.push(line);
    }
    for row in server.rows() {
        if row.table == Target::ObjectRows.table() && row.rows > 0 {
            let of_object = found.entry((row.path, row.etag)).or_default();
            of_object.counted += row.rows;
        }
    }
    found
}
