//! Builds the statements that load the objects of a manifest.
//!
//! Pure. The same manifest, attempt and catalog always yield the same statements: a retry under the
//! batch's token is exact only then.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::batch::{
    ASSUMED_BYTES, ASSUMED_COMPRESSION_RATIO, BatchId, Layout, ReadBy, StatementShape,
    estimated_bytes, mean_bytes,
};
use crate::event_types::{Catalog, EventType};
use crate::formats::{FormatId, Formats, Kind};
use crate::object::ObjectRef;
use crate::sql;
use crate::statements::ddl::{REPLAYED, landing_name_of};
use crate::statements::guard::{CHANGED_TEXT, FENCED_TEXT};
use crate::statements::layouts::assignments;
use crate::statements::records::{
    Reader, are_numbered_on_arrival, clickhouse_format, coalesced, of_rejects, records, texts,
};
use crate::statements::s3_source::S3Access;
pub use crate::statements::s3_source::S3Source;
use crate::statements::select::{
    Landing, Lines, Settings, Target, TimeRange, gaps_select, landing_select, parsed_lines,
    per_type_select, view_select,
};
use crate::statements::{
    LOG_COMMENT, MAX_QUERY_BYTES, PINNED, RejectKind, Statement, format_settings,
};

/// How the rows get into the tables; the value of `load.strategy`.
// Its variants have no doc comments: schemars would make a `oneOf` of them, and not an `enum`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Strategy {
    // One statement into the landing table, from which views fill the others: each object is read
    // once.
    SinglePass,
    // One statement for each table: each object is read once for each.
    PerType,
}

/// The limits of plausible times in columns by which tables are partitioned.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimits {
    /// The first moment, in seconds since 1970.
    pub start: u64,
    /// How far after the creation of the batch a time may be.
    pub max_future: Duration,
}

impl TimeLimits {
    /// All times that a column can have.
    pub const ANY: Self = Self {
        start: 0,
        max_future: Duration::from_secs(u32::MAX as u64),
    };

    /// Returns the range for a batch; `None` if its id has no time. It follows from the batch
    /// alone, since a retry must produce the same rows.
    pub fn of(self, batch: BatchId) -> Option<TimeRange> {
        Some(TimeRange {
            start: self.start,
            end: batch.made_at()? + self.max_future.as_secs(),
        })
    }
}

/// Builds statements. It has everything that they depend on in addition to the batch.
pub struct Planner {
    options: PlannerOptions,
    /// The plan of JSON lines.
    plan_id: Uuid,
    /// The plan of replays, whose statements also depend on the declared formats.
    replay_plan: Uuid,
    /// The plans of the other formats, without what a layout adds.
    format_plans: BTreeMap<FormatId, Uuid>,
}

/// What the statements of a worker depend on, in addition to the batch.
#[derive(Clone, Debug)]
pub struct PlannerOptions {
    pub catalog: Catalog,
    pub source: S3Source,
    pub strategy: Strategy,
    pub database: String,
    /// Objects of more estimated bytes are read in many blocks.
    pub max_bytes: u64,
    /// Lines of more bytes are rejected.
    pub max_line_bytes: u64,
    pub times: TimeLimits,
    pub insert_timeout: Duration,
}

/// Returns the query for the rows that a table would get from these lines.
pub fn preview_of(catalog: &Catalog, target: Target<'_>, lines: &Lines) -> String {
    with_settings(per_type_select(catalog, target, lines), lines)
}

/// Returns the query of which values of an event type are missing or invalid ([`gaps_select`]),
/// under the settings of [`preview_of`].
pub fn gaps_of(catalog: &Catalog, event_type: &EventType, lines: &Lines) -> String {
    with_settings(gaps_select(catalog, event_type, lines), lines)
}

fn with_settings(select: String, lines: &Lines) -> String {
    format!(
        "{select}
SETTINGS {}",
        reading_settings(lines)
    )
}

/// Returns the settings with which a query reads lines, as they follow SETTINGS.
fn reading_settings(lines: &Lines) -> String {
    format!(
        "session_timezone = 'UTC', use_hive_partitioning = 0, s3_ignore_file_doesnt_exist = 0{}",
        assignments(&lines.settings)
    )
}

impl Planner {
    pub fn new(options: PlannerOptions) -> Self {
        let text = plan_text(&options);
        Self {
            plan_id: plan_of(&text),
            replay_plan: plan_of(&(text.clone() + &replay_text(&options.catalog))),
            format_plans: format_plans(&options, &text),
            options,
        }
    }

    pub fn options(&self) -> &PlannerOptions {
        &self.options
    }

    pub fn catalog(&self) -> &Catalog {
        &self.options.catalog
    }

    /// Returns the statements that load these objects of one bucket, in order. The objects are
    /// loaded once all of them have succeeded.
    ///
    /// `guard` is the condition under which no statement may start. If any object is not what was
    /// announced, the statement fails, and commits nothing.
    ///
    /// Objects that the worker reads follow each statement in its body, in the order of `objects`.
    /// A body of another layout than JSON lines is one object, as it is.
    pub fn inserts(
        &self,
        batch: BatchId,
        objects: &[&ObjectRef],
        shape: StatementShape,
        layout: &Layout,
        guard: &str,
    ) -> Vec<Statement> {
        let read_by = shape.read_by;
        let statements = match self.options.strategy {
            Strategy::SinglePass => {
                let lines = self.lines(batch, objects, read_by, layout, guard);
                let select = landing_select(&self.options.catalog, &lines);
                let landing = landing_name_of(&self.options.catalog, lines.landing());
                vec![format!("{} {select}", self.insert_into(&landing))]
            }
            Strategy::PerType => Target::all(&self.options.catalog)
                .into_iter()
                .filter_map(|target| self.fill(target, batch, objects, read_by, layout, guard))
                .collect(),
        };
        statements
            .into_iter()
            .map(|sql| self.statement(sql, batch, objects, shape, layout))
            .collect()
    }

    /// Returns the query for the rows that an object would have in a table if this batch loaded it
    /// again, as ClickHouse reads it, and the settings for that. It is `None` if the object cannot
    /// have any, or if the layout's format is not declared.
    pub fn rows_of(
        &self,
        target: Target<'_>,
        batch: BatchId,
        object: &ObjectRef,
        layout: &Layout,
    ) -> Option<(String, String)> {
        if !target.is_filled_from(&object.key) {
            return None;
        }
        self.plan_id(ReadBy::S3, layout)?;
        let lines = self.lines(batch, &[object], ReadBy::S3, layout, "0");
        let select = per_type_select(&self.options.catalog, target, &lines);
        Some((select, reading_settings(&lines)))
    }

    /// Returns the query that previews the replay of rejects in this batch: the number of lines of
    /// each `source_path`, `source_etag`, `kind` and `reason`. `rows` is what follows FROM.
    pub fn preview(&self, batch: BatchId, rows: &str) -> String {
        format!(
            "SELECT source_path, source_etag, kind, reason, count() AS lines FROM {} \
             GROUP BY source_path, source_etag, kind, reason",
            self.parsed_lines(rows, batch)
        )
    }

    /// Returns the statement that writes the snapshot of a replay: the rejects that are now valid
    /// rows, with their text.
    pub fn snapshot(
        &self,
        batch: BatchId,
        objects: &[&ObjectRef],
        rows: &str,
        guard: &str,
    ) -> Statement {
        let listed: Vec<String> = objects
            .iter()
            .map(|object| format!("({})", sql::strings([&object.path(), &object.etag])))
            .collect();
        let types = self.options.catalog.types().iter();
        let sql = format!(
            "{} (batch_id, source_path, source_etag, row_number, raw, kept_batch_id) \
             SELECT toUUID({id}), source_path, source_etag, row_number, raw, batch_id \
             FROM {rows} AND {} AND (source_path, source_etag) IN ({}) \
             AND (source_path, source_etag, row_number) IN (\
               SELECT source_path, source_etag, row_number FROM {} WHERE kind IN ({}))",
            self.insert_into(REPLAYED),
            sql::throw_if(guard, FENCED_TEXT),
            listed.join(","),
            self.parsed_lines(rows, batch),
            sql::strings(types.map(|event_type| &event_type.name)),
            id = sql::id(batch.0)
        );
        let shape = StatementShape {
            many_blocks: self.needs_many_blocks(objects),
            ..StatementShape::of(ReadBy::RejectedLines)
        };
        self.statement(sql, batch, objects, shape, &Layout::default())
    }

    /// Returns a table expression for the rows of `landing` that rejects would become now.
    fn parsed_lines(&self, rows: &str, batch: BatchId) -> String {
        let lines = Lines {
            max_line_bytes: self.options.max_line_bytes,
            times: self.options.times.of(batch),
            ..of_rejects(
                Lines::of_rejects(rows, batch.0),
                self.options.catalog.formats(),
            )
        };
        parsed_lines(&self.options.catalog, &lines)
    }

    /// Returns the statement that fills one table; `None` if none of the objects is on its route.
    fn fill(
        &self,
        target: Target<'_>,
        batch: BatchId,
        objects: &[&ObjectRef],
        read_by: ReadBy,
        layout: &Layout,
        guard: &str,
    ) -> Option<String> {
        let mut on_route = objects.to_vec();
        on_route.retain(|object| target.is_filled_from(&object.key));
        if on_route.is_empty() {
            return None;
        }
        let sources = match read_by {
            ReadBy::S3 => &on_route,
            // The body, or the snapshot, has all of them.
            ReadBy::Stream | ReadBy::RejectedLines | ReadBy::UnmatchedStatements => objects,
        };
        let columns = target.columns().into_iter().map(sql::ident);
        let columns: Vec<String> = columns.collect();
        let lines = self.lines(batch, sources, read_by, layout, guard);
        let select = per_type_select(&self.options.catalog, target, &lines);
        let into = self.insert_into(target.table());
        Some(format!("{into} ({}) {select}", columns.join(", ")))
    }

    /// Returns the source of the lines, on the condition that the batch may still be loaded and
    /// that its objects are as announced.
    fn lines(
        &self,
        batch: BatchId,
        objects: &[&ObjectRef],
        read_by: ReadBy,
        layout: &Layout,
        guard: &str,
    ) -> Lines {
        let guard = sql::throw_if(guard, FENCED_TEXT);
        let (max_line_bytes, times) = (self.options.max_line_bytes, self.options.times.of(batch));
        match read_by {
            ReadBy::S3 => {
                let lines = if layout.is_json_lines() {
                    Lines::of_objects(self.lines_of_all(objects), batch.0)
                } else {
                    self.records(layout, objects, are_small(objects), batch.0)
                };
                let changed = sql::throw_if(&changed(objects), CHANGED_TEXT);
                Lines {
                    filter: Some(format!("{guard} AND {changed}")),
                    max_line_bytes,
                    times,
                    ..lines
                }
            }
            ReadBy::Stream if !layout.is_json_lines() => Lines {
                filter: Some(guard),
                max_line_bytes,
                times,
                ..self.records_of_body(layout, objects, batch)
            },
            ReadBy::Stream => {
                let listed: Vec<_> = objects
                    .iter()
                    .map(|object| (object.path(), object.etag.as_str()))
                    .collect();
                Lines {
                    filter: Some(guard),
                    max_line_bytes,
                    times,
                    ..Lines::of_body(&listed, batch.0)
                }
            }
            ReadBy::RejectedLines | ReadBy::UnmatchedStatements => {
                let list = sql::qualified(&self.options.database, REPLAYED);
                let kept = Lines::of_rejects(
                    &format!("{list} WHERE batch_id = {id}", id = sql::id(batch.0)),
                    batch.0,
                );
                let lines = Lines {
                    from: coalesced(&kept.from),
                    filter: Some(guard),
                    max_line_bytes,
                    times,
                    ..kept
                };
                of_rejects(lines, self.options.catalog.formats())
            }
        }
    }

    /// Returns the records of the body of an insert, which is one object.
    fn records_of_body(&self, layout: &Layout, objects: &[&ObjectRef], batch: BatchId) -> Lines {
        let object = objects.first();
        let path = object.map(|object| object.path()).unwrap_or_default();
        let reader = Reader::Body {
            path: &path,
            etag: object.map_or("", |object| &object.etag),
        };
        records(self.kind_of(layout), &layout.structure, reader, batch.0)
    }

    fn insert_into(&self, table: &str) -> String {
        format!(
            "INSERT INTO {}",
            sql::qualified(&self.options.database, table)
        )
    }

    /// Returns a statement with its settings. Content that the worker reads follows the statement
    /// in the body.
    fn statement(
        &self,
        sql: String,
        batch: BatchId,
        objects: &[&ObjectRef],
        shape: StatementShape,
        layout: &Layout,
    ) -> Statement {
        let kind = self.kind_of(layout);
        let is_streamed = shape.read_by == ReadBy::Stream;
        let mut statement = Statement::new(sql)
            // One token for all statements: every table remembers its own.
            .with("insert_deduplication_token", batch.to_string())
            .with(
                "max_execution_time",
                self.options.insert_timeout.as_secs().to_string(),
            )
            .with(
                LOG_COMMENT,
                format!("sluice batch {batch}, {} objects", objects.len()),
            );
        let shape_settings: &[&[(&'static str, &str)]] = if shape.many_blocks {
            &[MANY_BLOCKS]
        } else if are_small(objects) {
            &[ONE_BLOCK, SMALL_OBJECTS]
        } else {
            &[ONE_BLOCK]
        };
        for (name, value) in SETTINGS
            .iter()
            .chain(shape_settings.iter().copied().flatten())
        {
            statement = statement.with(name, *value);
        }
        for (name, value) in self.settings_of(shape.read_by, kind) {
            statement = statement.with(name, value);
        }
        if are_numbered_on_arrival(kind, is_streamed) && !shape.many_blocks {
            statement = statement.with(ONE_THREAD.0, ONE_THREAD.1);
        }
        if !is_streamed {
            return statement.with("max_query_size", MAX_QUERY_BYTES);
        }
        // What follows the one line break is data, also of a binary format.
        statement.sql += &format!(" FORMAT {}\n", clickhouse_format(kind));
        // The server fills the rest of this room with data before it parses the statement.
        let room = statement.sql.len() + 1024;
        statement = statement.with("max_query_size", room.to_string());
        for (name, value) in STREAM_SETTINGS {
            // The format can have a value of its own.
            if statement.settings.iter().all(|(set, _)| set != name) {
                statement = statement.with(name, *value);
            }
        }
        statement
    }

    /// Returns the settings with which a statement reads its records, in addition to those of every
    /// statement.
    fn settings_of(&self, read_by: ReadBy, kind: &Kind) -> Settings {
        let formats = self.options.catalog.formats();
        if RejectKind::moved_by(read_by).is_some() {
            let nothing = Lines::of_rejects("", Uuid::nil());
            of_rejects(nothing, formats).settings
        } else {
            format_settings::of(kind)
        }
    }

    /// Returns the shape of the statements for these objects. If many blocks were requested, it has
    /// many.
    ///
    /// Its plan is nil if the layout's format is not declared.
    pub fn shape(
        &self,
        objects: &[&ObjectRef],
        asked: StatementShape,
        layout: &Layout,
    ) -> StatementShape {
        StatementShape {
            plan: self.plan_id(asked.read_by, layout).unwrap_or_default(),
            many_blocks: asked.many_blocks || self.needs_many_blocks(objects),
            read_by: asked.read_by,
        }
    }

    /// Returns the fingerprint of everything that statements depend on in addition to the manifest.
    /// It leaves out where ClickHouse reads the objects from, and with which credentials: the rows
    /// are the same.
    ///
    /// It is `None` if the layout's format is not declared. It depends on who reads the objects
    /// only for replays: their statements contain the declarations of formats of which a reject is
    /// not JSON.
    pub fn plan_id(&self, read_by: ReadBy, layout: &Layout) -> Option<Uuid> {
        if layout.is_json_lines() {
            let is_replay = RejectKind::moved_by(read_by).is_some();
            return Some(if is_replay {
                self.replay_plan
            } else {
                self.plan_id
            });
        }
        let format = self.options.catalog.formats().named(&layout.format)?;
        let of_format = self.format_plans.get(&format)?;
        Some(Uuid::new_v5(of_format, layout.to_text().as_bytes()))
    }

    /// Returns whether any of these objects is too large for one block.
    pub fn needs_many_blocks(&self, objects: &[&ObjectRef]) -> bool {
        objects
            .iter()
            .any(|object| estimated_bytes(object) > self.options.max_bytes)
    }

    /// Returns the table expression for the lines of an object, as in the statements that load it
    /// as JSON lines.
    pub fn lines_of(&self, object: &ObjectRef) -> String {
        self.lines_table(&[object])
    }

    pub(super) fn lines_table(&self, objects: &[&ObjectRef]) -> String {
        self.options
            .source
            .table(objects, "LineAsString", "line String")
    }

    fn lines_of_all(&self, objects: &[&ObjectRef]) -> String {
        let lines = self.lines_table(objects);
        if are_small(objects) {
            coalesced(&lines)
        } else {
            lines
        }
    }

    /// Returns the query for the current state of these objects: rows of `path`, `etag` and `size`.
    pub fn probe(&self, objects: &[&ObjectRef]) -> String {
        format!(
            "SELECT DISTINCT _path AS path, trim(BOTH '\"' FROM _etag) AS etag, _size AS size \
             FROM {} SETTINGS s3_ignore_file_doesnt_exist = 0, s3_skip_empty_files = 0, \
             use_hive_partitioning = 0, glob_expansion_max_elements = 1000000",
            self.options.source.table(objects, "One", "dummy UInt8"),
        )
    }
}

/// The mean size below which coalescing pays, in bytes: parsing this much costs as much as one more
/// block.
const SMALL_OBJECT: u64 = 256 * 1024;

/// Returns whether coalescing the lines saves more than it costs: after it, a single thread does
/// the rest of the insert.
fn are_small(objects: &[&ObjectRef]) -> bool {
    objects.len() > 1 && mean_bytes(objects.iter().copied()) < SMALL_OBJECT
}

/// Returns a condition: whether a row comes from other content than was announced. An object that
/// was announced without an etag has nothing to compare, and passes.
pub(super) fn changed(objects: &[&ObjectRef]) -> String {
    let mut pinned = Vec::new();
    let mut unpinned = Vec::new();
    for object in objects {
        let path = sql::string(&object.path());
        if object.etag.is_empty() {
            unpinned.push(path);
        } else {
            pinned.push(format!("({path},{})", sql::string(&object.etag)));
        }
    }
    let outside = |what: &str, mut list: Vec<String>| {
        list.sort_unstable();
        (!list.is_empty()).then(|| format!("{what} NOT IN ({})", list.join(",")))
    };
    let conditions: Vec<String> = [
        outside("(_path, trim(BOTH '\"' FROM _etag))", pinned),
        outside("_path", unpinned),
    ]
    .into_iter()
    .flatten()
    .collect();
    conditions.join(" AND ")
}

/// Settings of every insert. Those that decide how blocks are cut are pinned, since a retry must
/// cut the same blocks.
const SETTINGS: &[(&str, &str)] = &[
    ("glob_expansion_max_elements", "1000000"),
    ("async_insert", "0"),
    ("insert_deduplicate", "1"),
    ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    // Equal rows of one insert collapse at a merge, as those of two do: finding them here costs
    // more than it saves.
    ("optimize_on_insert", "0"),
    ("materialized_views_ignore_errors", "0"),
    ("max_insert_threads", "1"),
    ("input_format_parallel_parsing", "0"),
    ("max_read_buffer_size", "1048576"),
    ("max_block_size", "65409"),
    // A missing object is an error that names the key, and is never ignored.
    ("s3_ignore_file_doesnt_exist", "0"),
    // A few seconds. The worker retries what fails after that, or reads it itself.
    ("s3_retry_attempts", "6"),
    // `year=2026/` in a key is a name, not a column.
    ("use_hive_partitioning", "0"),
    ("session_timezone", "UTC"),
];

/// Settings for one block, which makes an insert all or nothing in each table and partition. The
/// order of reading does not matter then, and the server may use all its threads; without parallel
/// views, it would also read with a single one.
const ONE_BLOCK: &[(&str, &str)] = &[
    ("min_insert_block_size_rows", "1000000000"),
    ("min_insert_block_size_bytes", "100000000000"),
    ("parallel_view_processing", "1"),
    // Each partition adds a part, and a token to remember: a batch with more partitions is split.
    ("max_partitions_per_insert_block", "100"),
    ("throw_on_max_partitions_per_insert_block", "1"),
];

/// Settings for small objects, of which each thread reads one at a time: the threads wait for S3
/// rather than for a processor. There is nothing to read ahead.
const SMALL_OBJECTS: &[(&str, &str)] = &[
    ("max_threads", "16"),
    ("remote_filesystem_read_prefetch", "0"),
];

/// Settings for one large object: blocks that fit into memory.
const MANY_BLOCKS: &[(&str, &str)] = &[
    ("min_insert_block_size_rows", "30000"),
    ("min_insert_block_size_bytes", "100000000000"),
    ("throw_on_max_partitions_per_insert_block", "0"),
    ("parallel_view_processing", "0"),
    ("max_threads", "1"),
];

/// Settings for lines in the body: blocks are cut by rows, whatever pieces the lines arrive in.
const STREAM_SETTINGS: &[(&str, &str)] = &[
    ("max_insert_block_size", "30000"),
    ("max_insert_block_size_bytes", "0"),
    ("input_format_max_block_size_bytes", "0"),
    ("input_format_max_block_wait_ms", "0"),
];

/// The setting for records that are numbered as they arrive.
const ONE_THREAD: (&str, &str) = ("max_threads", "1");

/// Returns every setting that an insert of these formats can have. A server that does not know one
/// of them refuses the insert.
pub fn setting_names(formats: &Formats) -> impl Iterator<Item = &'static str> + use<> {
    let all = [
        SETTINGS,
        ONE_BLOCK,
        SMALL_OBJECTS,
        MANY_BLOCKS,
        STREAM_SETTINGS,
    ];
    all.into_iter()
        .flatten()
        .map(|(name, _)| *name)
        .chain(format_settings::names(formats))
}

fn plan_of(text: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes())
}

/// Returns everything that the statements for JSON lines depend on. See [`Planner::plan_id`].
fn plan_text(options: &PlannerOptions) -> String {
    let mut text = format!(
        "{:?} {} {SETTINGS:?} {STREAM_SETTINGS:?} {ONE_BLOCK:?} {SMALL_OBJECTS:?} \
         {MANY_BLOCKS:?} {PINNED:?} {SMALL_OBJECT} {ASSUMED_BYTES} {ASSUMED_COMPRESSION_RATIO} \
         {:?} {}",
        options.strategy,
        options.max_bytes,
        options.times,
        coalesced(""),
    );
    for mut lines in [
        Lines::of_objects("", Uuid::nil()),
        Lines::of_body(&[], Uuid::nil()),
    ] {
        lines.max_line_bytes = options.max_line_bytes;
        lines.times = Some(TimeRange { start: 0, end: 0 });
        text += &landing_select(&options.catalog, &lines);
    }
    for target in Target::all(&options.catalog) {
        text += target.table();
        text += &view_select(&options.catalog, Landing::Texts, target, "");
    }
    text
}

/// Returns what the statements of replays depend on in addition; nothing if they are those of JSON
/// lines.
fn replay_text(catalog: &Catalog) -> String {
    let lines = Lines::of_rejects("", Uuid::nil());
    let of_formats = of_rejects(lines.clone(), catalog.formats());
    if of_formats == lines {
        return String::new();
    }
    landing_select(catalog, &of_formats) + &format!("{:?}", of_formats.settings)
}

/// Returns the plan of each format other than JSON lines. `text` is what all plans depend on.
fn format_plans(options: &PlannerOptions, text: &str) -> BTreeMap<FormatId, Uuid> {
    let formats = options.catalog.formats();
    let others = formats
        .ids()
        .map(|id| (id, &formats.get(id).kind))
        .filter(|(_, kind)| !kind.is_json_lines());
    others
        .map(|(id, kind)| {
            let own = format_text(&options.catalog, kind);
            (id, plan_of(&format!("{text}{own}")))
        })
        .collect()
}

/// Returns everything that the statements for a format depend on in addition to a layout.
fn format_text(catalog: &Catalog, kind: &Kind) -> String {
    let nowhere = S3Source {
        endpoint: None,
        default_region: String::new(),
        access: S3Access::Server,
    };
    let mut text = format!(
        "{kind:?} {:?} {ONE_THREAD:?} {}",
        format_settings::of(kind),
        clickhouse_format(kind)
    );
    // Each layout has its own statements, but these show how its values are read.
    for structure in sample_structures(catalog, kind) {
        for reader in [
            Reader::Objects {
                source: &nowhere,
                objects: &[],
                is_coalesced: true,
            },
            Reader::Body { path: "", etag: "" },
        ] {
            let lines = records(kind, &structure, reader, Uuid::nil());
            text += &landing_select(catalog, &lines);
        }
    }
    if kind.has_own_fields() {
        for target in Target::all(catalog) {
            text += &view_select(catalog, Landing::Values, target, "");
        }
    }
    text
}

/// Types of columns of files of which each is read in another way. The last is read by the JSON text
/// of its record.
const SAMPLE_TYPES: [&str; 21] = [
    "String",
    "Int8",
    "Int32",
    "Int64",
    "UInt8",
    "UInt32",
    "UInt64",
    "Float32",
    "Float64",
    "Decimal(9, 2)",
    "Decimal(18, 2)",
    "Decimal(18, 18)",
    "Bool",
    "DateTime",
    "DateTime64(3)",
    "DateTime64(6)",
    "DateTime64(9)",
    "UUID",
    "Array(String)",
    "Map(String, String)",
    "Int128",
];

/// Returns structures that have a field for the first key of each declared path, in each of the
/// types that a field of this kind can have.
fn sample_structures(catalog: &Catalog, kind: &Kind) -> Vec<Vec<(String, String)>> {
    let leaves = catalog.tree().leaves().into_iter();
    let mut names: Vec<String> = leaves.filter_map(|path| path.into_iter().next()).collect();
    names.dedup();
    if kind.is_text() {
        return vec![texts(&names)];
    }
    let of_type = |column_type: &str| {
        let names = names.iter().cloned();
        names.map(|name| (name, column_type.to_owned())).collect()
    };
    SAMPLE_TYPES.into_iter().map(of_type).collect()
}

#[cfg(test)]
mod tests;
