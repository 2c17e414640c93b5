//! The guarantees against known flaws of proxies, each with the tests that check it. A guarantee without an existing test
//! fails here.

use std::{fs, path::Path};

/// Each guarantee and its tests: the module and name of an integration test, or a file in `src/` and the name of a test in it.
const GUARANTEES: &[(&str, &[&str])] = &[
    // Connections and message framing.
    (
        "a request that two parsers could parse differently is refused",
        &[
            "hostile::ambiguous_request_heads_are_refused",
            "hostile::header_lines::invalid_header_line_is_refused",
            "hostile::header_lines::ambiguous_header_line_is_refused_or_sanitized",
            "hostile::request_targets::invalid_request_line_is_refused",
            "hostile::chunked_bodies::malformed_chunked_body_is_never_complete_upstream",
        ],
    ),
    (
        "a Transfer-Encoding is exactly chunked, once, and never with a Content-Length or in HTTP/1.0",
        &[
            "hostile::message_framing::transfer_encoding_other_than_chunked_is_refused",
            "hostile::message_framing::content_length_with_transfer_encoding_is_ignored",
            "hostile::content_length_with_chunked_smuggles_no_request",
        ],
    ),
    (
        "a Content-Length is one number, and one of 2^63 or more is too large",
        &[
            "hostile::message_framing::invalid_content_length_is_refused",
            "hostile::content_length_beyond_the_limit_is_refused_with_413",
            "hostile::http2::content_length_mismatch_is_never_complete_upstream",
        ],
    ),
    (
        "an HTTP/2 message that is reset before its end is never complete, whatever the error code",
        &[
            "streaming::body_reset_with_no_error_is_never_complete",
            "upstream_http2::response_reset_with_no_error_never_looks_complete",
            "properties::http2_frames_end_in_time_and_forward_only_complete_requests",
        ],
    ),
    (
        "requests that wait for a token are bounded in number and memory",
        &[
            "token_waiters::token_waits_beyond_the_limit_fail_at_once",
            "token_waiters::ticket_waits_beyond_the_limit_fail_at_once",
            "token_waiters::waiting_request_uses_less_than_four_kib",
            "token_waiters::waiting_stream_uses_less_than_four_kib",
        ],
    ),
    (
        "the proxy decides the framing of a forwarded body, and never copies it",
        &[
            "hostile::message_framing::valid_framing_is_forwarded_as_valid_framing",
            "hostile::chunked_bodies::chunk_extensions_and_trailers_are_not_forwarded",
            "forwarding::body_keeps_its_bytes_and_gets_a_length",
            "forwarding::post_without_body_sends_content_length_zero",
        ],
    ),
    (
        "hop-by-hop headers, and those named by Connection, are not forwarded in either direction",
        &[
            "headers::client_and_hop_by_hop_headers_are_not_forwarded",
            "headers::upstream_hop_by_hop_headers_are_not_forwarded",
            "headers::http2_client_headers_are_filtered_too",
            "hostile::header_lines::connection_headers_do_not_affect_the_upstream_request",
        ],
    ),
    (
        "an upgrade offer is ignored, and the bytes after it are the next request",
        &[
            "headers::h2c_upgrade_offer_is_ignored",
            "hostile::header_lines::connection_headers_do_not_affect_the_upstream_request",
        ],
    ),
    (
        "header names and pseudo-header fields of HTTP/2 are checked as strictly as HTTP/1 headers",
        &[
            "hostile::http2::invalid_header_fields_are_refused",
            "hostile::http2::unusual_valid_headers_are_forwarded_sanitized",
        ],
    ),
    (
        "an unread body is never parsed as a request: after an early refusal the connection is drained or closed",
        &[
            "hostile::bytes_of_a_refused_body_are_not_parsed_as_a_request",
            "errors::client_sending_a_refused_body_still_gets_the_response",
            "gettoken::gettoken_with_a_body_returns_the_pass",
            "faults::early_responses::early_response_reaches_an_http11_client",
        ],
    ),
    (
        "pipelined requests get one response each, in order, however they are split into packets",
        &[
            "hostile::pipelined_requests_are_answered_in_order",
            "hostile::pipelining::pipelined_requests_in_one_packet_are_served_in_order",
            "hostile::pipelining::pipeline_split_at_every_byte_is_served_in_order",
            "hostile::pipelining::pipeline_sent_byte_by_byte_is_served_in_order",
        ],
    ),
    (
        "a request head has at most 100 headers and 64 KiB, and the error for a larger one says so",
        &[
            "hostile::header_lines::request_head_size_is_bounded",
            "hostile::oversized_request_head_is_refused",
            "hostile::http2_floods::endless_header_block_is_cut_off",
            "hostile::http2_floods::hpack_bomb_is_refused",
        ],
    ),
    // Routing.
    (
        "Host is single, well-formed, and not forwarded",
        &[
            "hostile::request_targets::host_must_be_single_and_valid_and_is_not_forwarded",
            "hostile::invalid_host_is_refused",
            "hostile::client_host_header_is_not_forwarded",
        ],
    ),
    (
        "a target in absolute form names this proxy or its upstream; only the configuration selects the upstream",
        &[
            "hostile::request_targets::absolute_target_must_name_the_proxy_or_upstream",
            "hostile::absolute_target_with_a_foreign_authority_is_refused",
            "curl_and_python::curl_using_it_as_a_forward_proxy_is_refused",
        ],
    ),
    (
        "only seven methods, case-sensitive, are forwarded; CONNECT, TRACE and trace are refused",
        &[
            "forwarding::method_in_other_case_is_refused",
            "hostile::ambiguous_request_heads_are_refused",
            "hostile::request_targets::invalid_request_line_is_refused",
            "hostile::http2::invalid_header_fields_are_refused",
        ],
    ),
    (
        "a path that may be read as another path, encoded once or twice, is refused",
        &[
            "hostile::request_targets::path_is_forwarded_unchanged_or_refused",
            "hostile::ambiguous_paths_are_refused",
            "src/proxy/target/tests.rs::decoded_path_stays_below_the_api_root",
        ],
    ),
    (
        "the client's access_token is removed under every encoding of its name, and the rest is forwarded byte for byte",
        &[
            "forwarding::client_access_token_is_removed_under_any_encoding",
            "forwarding::query_is_forwarded_byte_for_byte",
            "hostile::request_targets::path_is_forwarded_unchanged_or_refused",
            "src/proxy/query.rs::with_token_agrees_with_a_full_parser",
        ],
    ),
    (
        "access is decided by the decoded path, and never by the query or a header",
        &[
            "authentication::allow_list_restricts_methods_and_paths",
            "rate_limits::allow_patterns_match_method_path_and_segment",
            "headers::client_and_hop_by_hop_headers_are_not_forwarded",
        ],
    ),
    (
        "the credentials of a client are never forwarded, and malformed ones give no access",
        &[
            "authentication::key_is_accepted_in_each_form_and_never_forwarded",
            "hostile::header_lines::malformed_key_is_refused",
            "passes::pass_selects_its_agent_and_is_never_forwarded",
            "credential_stripping::pass_outside_access_token_in_a_target_is_refused",
            "credential_stripping::key_in_a_target_is_refused",
            "credential_stripping::header_repeating_a_pass_or_key_is_not_forwarded",
            "credential_stripping::client_address_headers_are_not_forwarded",
        ],
    ),
    // Responses.
    (
        "a response that two parsers could parse differently, or an unrequested protocol switch, is refused",
        &[
            "faults::invalid_responses::invalid_response_returns_upstream_broke",
            "upstream_http2::response_with_an_invalid_header_name_is_upstream_broke",
        ],
    ),
    (
        "a close-delimited response is complete only where HTTP allows it, and a truncated one never looks complete",
        &[
            "faults::invalid_responses::close_delimited_and_slow_responses_are_complete",
            "faults::invalid_responses::truncated_response_never_looks_complete",
            "faults::invalid_responses::stalled_response_never_looks_complete",
            "faults::connection_drops::http10_client_sees_each_upstream_fault",
            "faults::connection_drops::http11_client_sees_each_upstream_fault",
            "faults::connection_drops::http2_client_sees_each_upstream_fault",
        ],
    ),
    (
        "an unsolicited response is discarded",
        &[
            "faults::idle_connections::unsolicited_response_reaches_no_client",
            "faults::idle_connections::unsolicited_response_reaches_none_of_many_clients",
            "faults::invalid_responses::surplus_response_is_discarded_before_the_next_request",
        ],
    ),
    // Retries.
    (
        "a non-idempotent request is retried only if the upstream cannot have received it",
        &[
            "faults::idle_connections::request_on_a_closing_connection_is_retried_if_idempotent",
            "replay::get_on_a_closing_connection_is_retried_and_post_is_not",
            "replay::pooled_connection_closed_by_wecom_is_replaced",
            "upstream_http2::closed_http2_connection_retries_get_and_fails_post",
            "upstream_http2::refused_stream_is_retried_once",
        ],
    ),
    (
        "a request that fails on a new connection is not retried",
        &["faults::idle_connections::request_failed_on_a_new_connection_is_not_retried"],
    ),
    (
        "only a buffered body is replayed, and the buffers are bounded",
        &[
            "replay::upload_refused_before_its_end_is_replayed_completely",
            "replay::body_beyond_replay_memory_spills_to_an_unnamed_file",
            "replay::unwritable_replay_directory_only_disables_the_retry",
            "replay_disk::declared_body_beyond_the_budget_is_refused_unsent",
            "replay_disk::declared_lengths_without_bodies_take_nothing_from_others",
            "replay_disk::concurrent_declared_bodies_that_fit_are_all_retried",
            "replay_disk::body_outgrowing_the_disk_budget_is_sent_without_retry",
            "replay_disk::replay_bodies_stay_within_their_budgets",
            "properties::replay_bodies_stay_in_budget_and_replay_exactly",
        ],
    ),
    (
        "a body of mostly chunk framing is refused, and never uses more memory than its data",
        &[
            "replay_disk::request_of_mostly_chunk_framing_is_refused",
            "replay_disk::response_of_mostly_chunk_framing_is_upstream_broke",
            "memory_usage::replay_chunks_between_framing_use_what_is_counted",
            "memory_usage::json_in_one_byte_chunks_uses_little_memory",
        ],
    ),
    // Timeouts.
    (
        "an idle connection is closed, whatever its protocol",
        &[
            "timeouts::idle_connection_is_closed",
            "timeouts_http2::idle_http2_connection_is_closed",
            "timeouts_http2::quiet_http2_client_is_pinged",
        ],
    ),
    (
        "a partial or slow request head or HTTP/2 preface is timed out",
        &[
            "timeouts::incomplete_request_head_is_closed",
            "timeouts::slow_request_head_is_closed",
            "timeouts::second_request_head_is_timed_too",
            "timeouts_http2::incomplete_http2_header_block_is_closed",
        ],
    ),
    (
        "a stalled body is timed out in both directions",
        &[
            "timeouts::stalled_body_is_refused_and_the_upstream_released",
            "timeouts::response_stalled_before_forwarding_is_upstream_timeout",
            "timeouts::response_stalled_in_its_body_aborts_the_client_connection",
            "timeouts::client_not_reading_is_disconnected",
            "timeouts_http2::http2_client_not_reading_is_reset",
            "timeouts::upstream_that_never_reads_is_upstream_timeout",
        ],
    ),
    (
        "a response that does not begin, or whose head is slow, is upstream-timeout",
        &[
            "timeouts::missing_response_returns_upstream_timeout",
            "faults::invalid_responses::incomplete_response_returns_upstream_timeout",
            "timeouts::gettoken_timeout_is_token_unavailable",
        ],
    ),
    (
        "a wait for a fetch of another request is bounded",
        &[
            "tickets::slow_ticket_response_times_out_for_all_waiters",
            "faults::tokens::invalid_gettoken_response_fails_only_the_waiting_request",
        ],
    ),
    // Bounds.
    (
        "bodies, connections and permits are bounded, and a request beyond the bound is refused at once",
        &[
            "errors::body_above_the_limit_is_refused_declared_or_not",
            "errors::request_beyond_the_queue_timeout_gets_retry_after",
            "overload::request_with_a_full_queue_is_refused_at_once",
            "overload::full_proxy_keeps_busy_connections_and_makes_new_ones_wait",
        ],
    ),
    (
        "a full proxy evicts idle connections and partial requests",
        &[
            "overload::full_proxy_evicts_longest_idle_connections_and_logs_once",
            "overload::partial_requests_block_no_client_of_a_full_proxy",
            "client_tls::pending_tls_handshakes_block_no_client_of_a_full_proxy",
        ],
    ),
    (
        "unauthenticated clients block no authenticated client",
        &[
            "hostile::unauthenticated::unauthenticated_connections_block_no_authenticated_client",
            "hostile::unauthenticated::reconnecting_clients_block_no_authenticated_client",
            "hostile::unauthenticated::unix_socket_clients_block_no_authenticated_client",
            "hostile::unauthenticated::authenticated_connection_is_not_evicted_for_others",
        ],
    ),
    (
        "an unauthenticated connection uses little memory, and all of it is released",
        &[
            "hostile::unauthenticated::unread_refused_streams_use_little_memory",
            "hostile::unauthenticated::waves_of_refused_streams_leak_no_memory",
            "hostile::unauthenticated::refused_streams_beyond_a_few_are_reset",
            "hostile::unauthenticated::concurrent_streams_with_a_valid_key_are_all_served",
            "hostile::unauthenticated::unread_refused_stream_is_reset_quickly",
            "hostile::unauthenticated::requests_without_a_key_are_bounded_per_connection",
        ],
    ),
    (
        "little input causes little work: no amplification of memory or time",
        &[
            "memory_usage::large_bodies_use_little_memory",
            "memory_usage::unread_response_buffer_does_not_grow_with_the_upload",
            "memory_usage::json_without_errcode_uses_little_memory",
            "hostile::http2_floods::rapid_resets_are_bounded",
            "hostile::http2_floods::useless_frames_are_processed_or_close_the_connection",
            "hostile::http2_floods::empty_data_frames_are_bounded",
            "hostile::http2_floods::ping_flood_without_reading_blocks_no_other_client",
        ],
    ),
    (
        "HTTP/2 streams and flow-control windows are bounded",
        &[
            "hostile::http2_floods::flow_control_windows_are_bounded",
            "hostile::http2_floods::streams_beyond_the_limit_are_refused_and_others_served",
            "hostile::http2_floods::data_beyond_the_window_resets_stream_or_connection",
            "hostile::http2_floods::closed_windows_block_no_other_client",
        ],
    ),
    (
        "without file descriptors, accepting neither stops nor spins",
        &["overload::descriptor_exhaustion_neither_spins_nor_floods_the_log"],
    ),
    (
        "repeated client faults do not fill the log",
        &[
            "log::repeated_client_faults_do_not_fill_the_log",
            "log::requests_do_not_wait_for_a_blocked_log_reader",
            "src/time/log_throttle.rs::throttle_over_limit_suppresses_and_counts",
        ],
    ),
    // Disconnects, shutdown and reload.
    (
        "a client that resets its connection, or does not take its response, cancels its request, and not the token refresh of others",
        &[
            "faults::client_aborts::client_abort_releases_all_its_resources",
            "disconnect::reset_drops_a_waiting_request_at_once",
            "half_close::reset_after_fin_ends_the_upstream_request",
            "half_close::closed_client_ends_its_streamed_response",
            "src/tokens/tests/lifecycle.rs::cancelled_callers_do_not_cancel_the_refresh",
            "tickets::aborting_client_does_not_fail_other_ticket_waiters",
        ],
    ),
    (
        "a client that only stops sending gets its whole response; a request that still waits 1 s later is not executed",
        &[
            "half_close::fin_with_the_request_gets_a_whole_response",
            "half_close::fin_during_a_streamed_response_leaves_it_whole",
            "half_close::pipelined_requests_before_fin_are_all_answered",
            "disconnect::waiting_request_is_dropped_one_second_after_fin",
            "disconnect::waiting_request_sent_soon_after_fin_is_served",
        ],
    ),
    (
        "a graceful shutdown finishes requests in flight, sends GOAWAY, and waits for no idle connection",
        &[
            "drain::drain_finishes_requests_and_refuses_new_connections",
            "drain::drain_finishes_http2_streams_in_flight",
            "drain::drain_closes_idle_connections_at_once",
            "drain::drain_does_not_wait_for_silent_clients_or_partial_heads",
            "drain::drain_ends_when_the_grace_period_expires",
            "drain::second_signal_stops_at_once",
        ],
    ),
    (
        "a handover from one process to the next refuses no client",
        &["socket_handover::socket_handover_refuses_no_client"],
    ),
    (
        "a reload is atomic: an invalid file keeps the old configuration, and no request fails",
        &[
            "reload::invalid_file_changes_nothing_on_reload",
            "reload::request_in_flight_survives_removal_of_its_agent",
            "reload::reload_under_load_loses_nothing_and_swaps_certificates",
        ],
    ),
    (
        "a reload never opens a closed proxy, and closes connections that a changed client_ca excludes",
        &[
            "reload_access::reload_without_clients_leaves_a_closed_proxy_closed",
            "reload_access::include_pattern_that_lost_its_files_fails_the_reload",
            "client_ca::client_ca_that_loses_an_authority_closes_its_clients",
        ],
    ),
    (
        "an error shows no internal address, and key guessing delays only the guesser",
        &[
            "errors::error_message_hides_addresses_that_the_log_shows",
            "key_guessing::wrong_keys_are_delayed_and_good_keys_are_not",
            "key_guessing::delayed_guesses_yield_connections_in_a_full_proxy",
        ],
    ),
    // Secrets.
    (
        "no client sees a credential, and no error, log or page contains one",
        &[
            "gettoken::gettoken_works_without_the_upstream",
            "errors::proxy_errors_are_json_and_show_no_secret",
            "secret_leaks::plain_upstream_leaves_no_secret_in_the_log",
            "secret_leaks::tls_http2_upstream_leaves_no_secret_in_the_log",
            "secret_leaks::redirect_location_has_its_token_removed",
        ],
    ),
    (
        "a page of an origin that is not listed gets no JS-SDK signature, and no page gets a ticket",
        &[
            "jssdk::page_of_any_other_origin_is_forbidden",
            "jssdk::preflight_allows_exactly_the_listed_origins",
            "jssdk::page_in_a_browser_gets_a_signature_across_origins",
            "jssdk::signature_is_made_with_both_tickets",
        ],
    ),
    (
        "a request with Idempotency-Key is sent once, whatever is lost or killed, unless the client says send-again",
        &[
            "idempotency::connection_lost_at_any_point_never_sends_twice",
            "idempotency::killed_proxy_keeps_responses_and_never_sends_twice",
            "idempotency::concurrent_duplicates_are_carried_out_once",
            "idempotency::client_that_leaves_leaves_the_request_in_doubt",
            "idempotency::request_is_not_sent_while_the_state_is_locked",
        ],
    ),
    // Tokens.
    (
        "a refusal invalidates only the token that the request was sent with, however late or out of order",
        &[
            "src/tokens/tests/lifecycle.rs::refusal_of_an_old_token_causes_no_gettoken",
            "src/tokens/tests/errors.rs::repeated_refusals_of_a_new_token_count_once",
            "src/tokens/tests/interleavings.rs::random_interleavings_keep_every_invariant",
            "token_refresh::token_revoked_under_a_thousand_clients_is_refreshed_once",
        ],
    ),
    (
        "a token that is not URL-safe is not used",
        &[
            "faults::tokens::invalid_gettoken_response_fails_only_the_waiting_request",
            "src/wecom/response/gettoken_response.rs::only_a_url_safe_token_is_accepted",
        ],
    ),
    (
        "any expires_in causes neither a panic nor a refresh loop",
        &[
            "faults::tokens::token_with_any_expires_in_is_used",
            "src/wecom/response/gettoken_response.rs::any_expires_in_is_tolerated",
            "src/tokens/tests/call_limits.rs::shortest_lived_tokens_do_not_spin_the_refresh_loop",
        ],
    ),
    (
        "the state is private, encrypted, bound to its place, and loses nothing that it reported as written",
        &[
            "src/state/tests/files.rs::missing_file_is_made_private",
            "src/state/tests/files.rs::record_moved_to_another_name_is_found",
            "src/state/tests/files.rs::torn_page_is_found_wherever_it_is",
            "src/state/tests/files.rs::unusable_file_is_named_and_unchanged",
            "src/state/tests/writes.rs::file_contains_no_value_in_plain_text",
            "state_crash::killed_process_loses_nothing_that_it_reported",
            "state_crash::file_size_limit_fails_writes_and_keeps_what_was_written",
            "state_shared::values_are_sealed_and_rekeyed_while_replicas_run",
        ],
    ),
    (
        "a gettoken response that is a page, truncated or without a token fails only the waiting request",
        &["faults::tokens::invalid_gettoken_response_fails_only_the_waiting_request"],
    ),
    // Callbacks.
    (
        "a callback is taken only with a valid signature and receiveid, and all refusals look alike",
        &["callbacks::receiver::refusals_are_alike_and_counted_by_reason"],
    ),
    (
        "XML from the Internet defines no entities, and makes nothing panic",
        &[
            "callbacks::receiver::malformed_and_oversized_bodies_are_refused",
            "properties::pushed_bodies_never_panic_and_decrypt_again",
        ],
    ),
    (
        "a callback that was answered with 200 survives kill -9",
        &["callbacks::processes::accepted_messages_survive_kill_9"],
    ),
    (
        "messages of callbacks are sealed on the disk, and shown in no log, list or metric",
        &["callbacks::operators::secrets_and_messages_are_not_logged_or_listed"],
    ),
];

/// The lowest versions without known vulnerabilities that affect this program.
const MIN_VERSIONS: &[(&str, [u64; 3])] = &[
    ("aws-lc-sys", [0, 39, 0]),
    ("bytes", [1, 11, 1]),
    ("h2", [0, 4, 18]),
    ("hyper", [1, 11, 0]),
    ("rustls", [0, 23, 18]),
    ("rustls-webpki", [0, 103, 13]),
    ("tracing-subscriber", [0, 3, 20]),
];

/// The file and the name of a test.
fn test_location(test: &str) -> (String, &str) {
    let (module, name) = test.rsplit_once("::").expect("a module and a name");
    match module.starts_with("src/") {
        true => (module.to_owned(), name),
        false => (format!("tests/it/{}.rs", module.replace("::", "/")), name),
    }
}

#[test]
fn every_guarantee_has_existing_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    for (guarantee, tests) in GUARANTEES {
        assert!(!tests.is_empty(), "{guarantee}");
        for test in *tests {
            let (file, name) = test_location(test);
            let text = fs::read_to_string(root.join(&file)).unwrap_or_default();
            let before = text.split_once(&format!("fn {name}(")).map(|(before, _)| before);
            // The attribute is on the last line but one; the last line is the text before `fn`.
            let is_test = before.is_some_and(|before| {
                before
                    .lines()
                    .rev()
                    .take(3)
                    .any(|line| line.trim_start().starts_with("#[") && line.contains("test"))
            });
            if !is_test {
                missing.push(format!("{guarantee}: {test} in {file}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn dependencies_have_no_known_vulnerable_version() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lock: toml::Table =
        fs::read_to_string(root.join("Cargo.lock")).expect("the lock file").parse().expect("TOML");
    let packages = lock["package"].as_array().expect("a list");
    for (name, min_version) in MIN_VERSIONS {
        let versions: Vec<_> =
            packages.iter().filter(|package| package["name"].as_str() == Some(name)).collect();
        assert!(!versions.is_empty(), "{name} is no longer used: remove it from the list");
        for package in versions {
            let version = package["version"].as_str().expect("a version");
            let numbers =
                version.split(['.', '-', '+']).take(3).map(|number| number.parse().expect("a number"));
            assert!(numbers.collect::<Vec<u64>>() >= min_version.to_vec(), "{name} {version}");
        }
    }
    let unmaintained = |package: &&toml::Value| package["name"].as_str() == Some("rustls-pemfile");
    assert!(packages.iter().find(unmaintained).is_none(), "rustls-pemfile is unmaintained");
}
