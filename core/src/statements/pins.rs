//! The settings that every statement sets.

/// A setting, and the value to which every statement sets it.
pub type Pin = (&'static str, &'static str);

/// Settings of a user's profile that would change what is read or written, with the values that
/// prevent it. Where the planner sets one of them for an insert, the planner's value applies.
///
/// `no_setting_of_a_profile_changes_rows` (tests/it/profiles.rs) flips every setting of the server,
/// to find those that are missing here.
pub const PINNED: &[Pin] = &[
    // These remove rows from a result, or add some.
    ("limit", "0"),
    ("offset", "0"),
    ("additional_result_filter", ""),
    ("additional_table_filters", "{}"),
    ("final", "0"),
    ("apply_deleted_mask", "1"),
    ("empty_result_for_aggregation_by_empty_set", "0"),
    (
        "empty_result_for_aggregation_by_constant_keys_on_empty_set",
        "1",
    ),
    // These return a part of the rows as if it were all, once a limit or a timeout is reached.
    ("partial_result_on_first_cancel", "0"),
    ("timeout_overflow_mode", "throw"),
    ("timeout_overflow_mode_leaf", "throw"),
    ("read_overflow_mode", "throw"),
    ("read_overflow_mode_leaf", "throw"),
    ("result_overflow_mode", "throw"),
    ("group_by_overflow_mode", "throw"),
    ("sort_overflow_mode", "throw"),
    ("distinct_overflow_mode", "throw"),
    ("set_overflow_mode", "throw"),
    ("join_overflow_mode", "throw"),
    ("transfer_overflow_mode", "throw"),
    // These change values.
    ("allow_simdjson", "1"),
    ("join_use_nulls", "0"),
    ("aggregate_functions_null_for_empty", "0"),
    // These change the blocks by which ClickHouse recognises a repeated insert.
    ("input_format_max_block_size_bytes", "0"),
    ("input_format_max_block_wait_ms", "0"),
    ("use_strict_insert_block_limits", "0"),
    // These return results of other servers, or earlier results.
    ("use_query_cache", "0"),
    ("enable_parallel_replicas", "0"),
    ("automatic_parallel_replicas_mode", "0"),
    ("parallel_distributed_insert_select", "2"),
    // This compares every condition with every other one during planning: about 45 ms for an insert
    // of 1,000 objects, whose conditions list them all. It never changes a result.
    ("optimize_and_compare_chain", "0"),
];
