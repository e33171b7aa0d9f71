//! The settings with which ClickHouse reads the objects of declared formats.
//!
//! They decide which values are read, and how blocks are cut, and are therefore pinned also where
//! they have their default: a user's profile could change them.

use crate::formats::{Delimited, Formats, Kind};
use crate::statements::delimited::Nulls;
use crate::statements::select::Settings;

/// Settings of every format.
const ALL: &[(&str, &str)] = &[
    ("input_format_allow_errors_num", "0"),
    ("input_format_allow_errors_ratio", "0"),
    // A block has thousands of rows otherwise, which can each be a document of megabytes. The first
    // is for what ClickHouse reads, the second for what the worker sends.
    ("input_format_max_block_size_bytes", "33554432"),
    ("max_insert_block_size_bytes", "33554432"),
    ("input_format_null_as_default", "1"),
];

/// JSON documents. Without the settings for strings, a list's elements would have to be objects.
const DOCUMENTS: &[(&str, &str)] = &[
    ("input_format_json_read_objects_as_strings", "1"),
    ("input_format_json_read_numbers_as_strings", "1"),
    ("input_format_json_read_arrays_as_strings", "1"),
    ("input_format_json_read_bools_as_strings", "1"),
    ("input_format_skip_unknown_fields", "1"),
    ("input_format_defaults_for_omitted_fields", "1"),
    ("input_format_json_ignore_unknown_keys_in_named_tuple", "1"),
    (
        "input_format_json_defaults_for_missing_elements_in_named_tuple",
        "1",
    ),
    ("input_format_json_named_tuples_as_objects", "1"),
    ("input_format_json_max_depth", "1000"),
    // `records` is not `Records`.
    ("input_format_column_name_matching_mode", "match_case"),
];

const CSV: &[(&str, &str)] = &[
    ("input_format_csv_allow_variable_number_of_columns", "1"),
    ("format_csv_allow_single_quotes", "0"),
    ("format_csv_allow_double_quotes", "1"),
    ("input_format_csv_trim_whitespaces", "0"),
    ("input_format_csv_detect_header", "0"),
    ("input_format_csv_use_default_on_bad_values", "0"),
    ("input_format_csv_skip_trailing_empty_lines", "0"),
    ("input_format_csv_allow_cr_end_of_line", "0"),
    ("input_format_csv_allow_whitespace_or_tab_as_delimiter", "0"),
    (
        "input_format_csv_deserialize_separate_columns_into_tuple",
        "1",
    ),
];

/// How values become JSON text, as a producer of JSON would write them.
const JSON_TEXT: &[(&str, &str)] = &[
    ("date_time_output_format", "iso"),
    ("output_format_json_escape_forward_slashes", "0"),
    ("output_format_json_quote_64bit_integers", "0"),
    ("output_format_json_quote_64bit_floats", "0"),
    ("output_format_json_quote_decimals", "0"),
    ("output_format_json_quote_denormals", "0"),
    ("output_format_json_named_tuples_as_objects", "1"),
    ("output_format_json_skip_null_value_in_named_tuples", "0"),
    ("output_format_json_map_as_array_of_tuples", "0"),
    ("output_format_decimal_trailing_zeros", "0"),
];

const PARQUET: &[(&str, &str)] = &[
    ("input_format_parquet_max_block_size", "65409"),
    ("input_format_parquet_prefer_block_bytes", "16744704"),
    ("input_format_parquet_preserve_order", "1"),
    ("input_format_parquet_use_native_reader_v3", "1"),
    ("input_format_parquet_local_time_as_utc", "1"),
    ("input_format_parquet_case_insensitive_column_matching", "0"),
    ("input_format_parquet_allow_missing_columns", "1"),
    ("input_format_parquet_enable_json_parsing", "1"),
    ("input_format_column_name_matching_mode", "match_case"),
];

const AVRO: &[(&str, &str)] = &[
    ("input_format_avro_allow_missing_fields", "0"),
    ("input_format_avro_null_as_default", "0"),
];

const ORC: &[(&str, &str)] = &[
    ("input_format_orc_row_batch_size", "100000"),
    ("input_format_orc_use_fast_decoder", "1"),
    ("input_format_orc_reader_time_zone_name", "GMT"),
    ("input_format_orc_allow_missing_columns", "1"),
    ("input_format_orc_case_insensitive_column_matching", "0"),
];

/// Settings that have a value of each declaration.
const OF_DECLARATION: [&str; 4] = [
    "format_csv_delimiter",
    "format_csv_null_representation",
    "input_format_csv_empty_as_default",
    "input_format_csv_skip_first_lines",
];

/// Returns the settings for objects of this kind; none for JSON lines.
pub(crate) fn of(kind: &Kind) -> Settings {
    let mut settings: Settings = fixed(kind)
        .iter()
        .flat_map(|some| some.iter())
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect();
    if let Kind::Delimited(declared) = kind
        && declared.quoted
    {
        settings.extend(OF_DECLARATION.into_iter().zip(of_quoted(declared)));
    }
    settings
}

/// Returns the settings with which the texts of rejects are made.
pub(crate) fn of_texts() -> Settings {
    let settings = JSON_TEXT.iter();
    settings
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect()
}

/// Returns the names of all settings with which objects of these formats, and rejects, are read.
pub(crate) fn names(formats: &Formats) -> Vec<&'static str> {
    let declared = formats.declared().iter();
    let mut names: Vec<&'static str> = declared
        .flat_map(|format| of(&format.kind))
        .map(|(name, _)| name)
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn fixed(kind: &Kind) -> &'static [&'static [(&'static str, &'static str)]] {
    match kind {
        Kind::JsonLines => &[],
        Kind::Documents { .. } => &[ALL, DOCUMENTS],
        Kind::Delimited(Delimited { quoted: true, .. }) => &[ALL, CSV, JSON_TEXT],
        Kind::Delimited(_) | Kind::Regex(_) => &[ALL, JSON_TEXT],
        Kind::Parquet => &[ALL, PARQUET, JSON_TEXT],
        Kind::Avro => &[ALL, AVRO, JSON_TEXT],
        Kind::Orc => &[ALL, ORC, JSON_TEXT],
    }
}

/// Returns the values of [`OF_DECLARATION`].
fn of_quoted(declared: &Delimited) -> [String; 4] {
    let nulls = Nulls::of(declared);
    let skipped = declared.skip_lines + u32::from(declared.header);
    [
        declared.delimiter.to_string(),
        nulls.own.to_owned(),
        u8::from(nulls.is_empty_null).to_string(),
        skipped.to_string(),
    ]
}
