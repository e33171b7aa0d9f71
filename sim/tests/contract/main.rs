//! The contract of the simulated servers: whatever a worker can observe of ClickHouse and S3, it
//! observes of the simulation, too. Each case runs against both, with the same assertions.
//!
//! [`servers::Servers`] is what a case requires of them. [`simulated`] implements it with the
//! simulation, on a paused clock, and [`real`] with the engine and the stand-in for S3 of
//! `sluice_testkit`, through the production code below the ports. [`words`] has the event types and
//! the lines, which are the same bytes for both.
//!
//! The simulation deliberately differs in these, of which no case asserts anything:
//!
//! - **The order in which an insert fills its tables.** The engine fills several at a time. What an
//!   insert that was cut short has written is asserted only where it was cut between statements,
//!   and of the table whose view has thrown.
//! - **Blocks.** The engine cuts those of 65,409 lines, and the simulation those of 4, so that
//!   small objects have many ([`servers::Servers::BLOCK_LINES`]).
//! - **Where an object that is cut short ends.** The simulation returns the first half of its
//!   lines; what decoders return depends on frames and buffers. Here, each half is a frame.
//! - **Contents.** There are no columns, so none is empty (`look_at`), no line is rejected for
//!   another reason than that it is not JSON, and content never contradicts its name (`is_misnamed`
//!   is false; the tests on the stack cover streamed misnamed objects).
//! - **bzip2** can be read by the simulated server, and not by the embedded engine, which is built
//!   without it.
//! - **Users' views** are one view that throws: none fills a table, so none is listed by
//!   `left_in_views`. Dropping it counts as a change for `has_passed`; a view that does not exist
//!   has never been changed for the engine.
//! - **Views of Sluice** are never missing: no insert is `Unfilled`.
//! - **Merges** do not happen, neither here nor there: the tables of the cases switch them off.
//! - **Pages of rejects** have 20,000 lines of the engine, and 40 of the simulation. Of a selector,
//!   the simulation regards the prefix only. `sluice::rejects` reads them from the engine: it is not
//!   below a port.
//! - **Deletions on replicas that lag.** The simulation waits for all servers that are up if it
//!   deletes moved rejects, and the engine for every deletion.
//! - **Profiles, quotas, memory and the number of parts** are error codes that the simulation is
//!   told to return. What each code means is tested with the table of codes.
//! - **What replicas have forgotten.** They forget the tokens of blocks in the background, at some
//!   time after the window; the simulated ones at once. So windows are compared on one server.
//! - **Several open batches of one object**: which of them a look-up returns is not specified.
//! - **How long a kill takes.** A statement of the engine that waits for S3 notices the kill when
//!   S3 responds or times out: after 91 s where S3 never responded. Simulated statements end at
//!   once.
//! - **Rows that a crash loses although their token stays** happen to the engine by chance, and to
//!   the simulation on request. tests/faults/connections.rs has the engine's.

mod claims;
mod database;
mod deletions;
mod errors;
mod fences;
mod history;
mod inserts;
mod leases;
mod on_replicas;
mod real;
mod repeats;
mod replays;
mod replicas;
mod servers;
mod simulated;
mod store;
mod streams;
mod words;
mod worker;

/// Makes a test of each case for each kind of servers. The cases on real replicas are one test,
/// since they share a cluster.
macro_rules! contract {
    (
        everywhere: [$($module:ident $settings:ident: {$($case:ident),+ $(,)?})+]
        one_server: [$($one_module:ident $one_settings:ident: {$($one_case:ident),+ $(,)?})+]
        replicas: [$($many_module:ident $many_settings:ident: {$($many_case:ident),+ $(,)?})+]
    ) => {
        mod simulated_server {
            use crate::servers;
            use crate::simulated::Simulated;

            $($(#[tokio::test(start_paused = true)]
            async fn $case() {
                crate::$module::$case(&Simulated::new(1, &servers::$settings)).await;
            })+)+
            $($(#[tokio::test(start_paused = true)]
            async fn $one_case() {
                crate::$one_module::$one_case(&Simulated::new(1, &servers::$one_settings)).await;
            })+)+
        }

        mod simulated_replicas {
            use crate::servers;
            use crate::simulated::Simulated;

            $($(#[tokio::test(start_paused = true)]
            async fn $case() {
                crate::$module::$case(&Simulated::new(2, &servers::$settings)).await;
            })+)+
            $($(#[tokio::test(start_paused = true)]
            async fn $many_case() {
                crate::$many_module::$many_case(&Simulated::new(2, &servers::$many_settings)).await;
            })+)+
        }

        mod real_server {
            use crate::real::Real;
            use crate::servers;

            $($(#[tokio::test]
            async fn $case() {
                let name = stringify!($case);
                if !crate::real::can_run(name) {
                    return;
                }
                let servers = Real::on_one_server(name, &servers::$settings).await;
                crate::$module::$case(&servers).await;
            })+)+
            $($(#[tokio::test]
            async fn $one_case() {
                let name = stringify!($one_case);
                if !crate::real::can_run(name) {
                    return;
                }
                let servers = Real::on_one_server(name, &servers::$one_settings).await;
                crate::$one_module::$one_case(&servers).await;
            })+)+
        }

        mod real_replicas {
            use crate::on_replicas::{Case, run};
            use crate::servers;

            #[tokio::test]
            async fn two_replicas_meet_the_contract() {
                let everywhere: &[Case] = &[$($(Case {
                    name: stringify!($case),
                    settings: servers::$settings,
                    run: |servers| Box::pin(async move {
                        crate::$module::$case(&servers).await;
                    }),
                }),+),+];
                let replicas: &[Case] = &[$($(Case {
                    name: stringify!($many_case),
                    settings: servers::$many_settings,
                    run: |servers| Box::pin(async move {
                        crate::$many_module::$many_case(&servers).await;
                    }),
                }),+),+];
                run(&[everywhere, replicas].concat()).await;
            }
        }
    };
}

contract!(
    everywhere: [
        claims STANDARD: {
            an_object_is_free_until_a_batch_claims_it,
            the_claims_of_the_batch_itself_do_not_count,
            the_objects_of_a_released_batch_are_free,
            the_objects_of_a_loaded_batch_are_loaded,
            superseded_claims_do_not_count,
            a_manifest_is_read_back_as_it_was_written,
            a_batch_that_has_ended_needs_no_recovery,
            the_batches_that_were_claimed_later_are_counted,
        }
        leases SHORT_LEASES: {
            a_lease_expires_unless_it_is_renewed,
            a_lease_is_renewed_during_work,
        }
        leases STANDARD: {
            an_abandoned_batch_has_no_lease,
            a_fence_takes_the_lease_over,
        }
        fences STANDARD: {
            the_first_run_to_fence_an_attempt_takes_it_over,
            a_fence_that_is_repeated_after_another_is_written_by_nobody,
            runs_of_one_worker_are_told_apart,
            a_fence_covers_the_attempts_before_it,
            the_fences_of_others_dispute_a_batch_on_replicas,
            a_fenced_attempt_can_neither_insert_nor_record,
            a_released_batch_can_neither_insert_nor_be_recorded,
            a_loaded_batch_can_be_recorded_again_but_not_inserted,
        }
        history STANDARD: {
            the_batches_that_have_loaded_an_object_are_known,
            objects_loaded_again_since_a_time_are_left_out,
            the_latest_loaded_objects_come_first,
        }
        inserts STANDARD: {
            an_insert_writes_each_line_to_the_table_of_its_kind,
            the_objects_of_a_batch_are_counted_one_by_one,
            nothing_is_counted_of_objects_without_lines,
            a_route_decides_which_objects_can_have_an_event,
            an_insert_by_type_writes_the_same_rows,
            a_large_object_is_inserted_in_many_blocks,
            the_first_line_of_an_object_can_look_compressed,
            failures_are_recorded_with_their_class_and_reason,
        }
        repeats STANDARD: {
            a_repeated_insert_adds_nothing,
            rows_that_were_rolled_back_do_not_come_back,
            rows_deleted_since_the_only_attempt_are_not_missing,
            an_insert_cut_between_tables_is_completed,
            an_insert_cut_between_blocks_is_completed,
            a_kill_ends_an_insert_and_reports_after_its_end,
        }
        deletions STANDARD: {
            the_rows_of_a_batch_are_deleted_and_no_others,
            the_rows_that_a_batch_supersedes_are_deleted,
            a_replacement_is_listed_until_it_is_cleaned_up,
            late_rows_of_a_released_batch_are_found,
            late_rows_can_be_the_only_copies,
        }
        replays STANDARD: {
            rejects_are_inserted_and_rolled_back_with_their_batch,
            the_rejects_of_loaded_batches_are_listed,
            a_preview_shows_what_rejects_would_become,
            a_replay_inserts_the_rejects_that_have_become_valid,
            the_rejects_that_a_replay_has_moved_are_deleted_and_no_others,
            a_replay_is_completed_from_its_snapshot,
            a_replay_that_repeats_another_is_noticed,
            a_fenced_replay_moves_nothing,
            the_rejects_of_an_object_are_busy_until_their_replay_is_cleaned_up,
            the_rejects_of_an_object_are_busy_while_a_batch_loads_it,
            an_unfinished_replay_is_listed_until_it_is_cleaned_up,
            a_replayer_moves_each_reject_once,
            a_replayer_moves_the_rejects_of_two_versions_of_a_key,
            a_replay_that_was_left_open_is_finished_by_the_next,
        }
        errors STANDARD: {
            a_missing_object_fails_its_insert,
            an_object_that_has_changed_fails_its_insert,
            an_object_that_has_become_empty_passes_without_rows,
            a_refused_object_fails_its_insert,
            inserts_fail_while_s3_is_unavailable,
            the_server_notices_that_a_gzip_stream_is_cut_short,
            a_zstd_stream_that_is_cut_short_is_read_in_part,
            the_server_shows_what_a_key_has_now,
            the_server_finds_objects_that_have_lines,
            an_insert_fails_in_a_users_view,
            batches_before_a_change_of_a_view_have_not_passed_it,
        }
        streams STANDARD: {
            a_streamed_insert_writes_the_same_rows,
            a_body_that_ends_in_an_error_writes_nothing,
            a_fenced_attempt_cannot_stream,
        }
        store STANDARD: {
            the_worker_sees_what_a_key_has_now,
            an_object_that_is_gone_is_missing,
            an_object_that_has_changed_is_not_read,
            an_object_can_be_refused_to_the_worker_alone,
            s3_can_be_unavailable_to_the_worker_alone,
            content_is_read_decompressed,
            the_worker_notices_that_an_object_is_cut_short,
            an_object_without_content_is_empty,
            a_worker_has_no_decoder_for_most_compressions,
        }
    ]
    one_server: [
        claims STANDARD: {
            a_ledger_that_hides_a_claim_is_an_error,
        }
        replays STANDARD: {
            a_ledger_that_hides_the_claim_of_a_replay_is_an_error,
        }
        repeats SMALL_WINDOW: {
            a_token_is_forgotten_after_a_window_of_later_blocks,
        }
        repeats CRASHES: {
            an_insert_whose_server_crashes_is_completed,
        }
    ]
    replicas: [
        replicas STANDARD: {
            a_read_after_a_barrier_sees_what_others_wrote,
            a_claim_sees_the_earlier_claims_of_others,
            a_claim_that_nobody_has_made_is_waited_for_in_vain,
            a_server_that_lacks_rows_says_so,
            a_batch_is_stopped_on_every_server,
            a_fenced_attempt_gets_no_time,
        }
        replicas SHORT_LEASES: {
            statements_do_not_start_after_their_deadline,
        }
        replicas STANDARD: {
            a_batch_is_not_stopped_while_a_server_is_down,
        }
    ]
);
