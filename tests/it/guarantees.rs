//! What proxies are known to break on, and the tests that would see it here. A promise without a test is none, and a test
//! that has gone takes its promise along: this list finds both.

use std::{fs, path::Path};

/// What is promised, and the tests of it: a story's module and name, or a file of `src/` and the name of a test in it.
const GUARANTEES: &[(&str, &[&str])] = &[
    // What is said of one connection, and what ends a message.
    (
        "a request that two parsers could read in two ways is refused",
        &[
            "hostile::ambiguous_request_heads_are_refused",
            "hostile::header_lines::invalid_header_line_is_refused",
            "hostile::header_lines::ambiguous_header_line_is_refused_or_sanitized",
            "hostile::request_targets::invalid_request_line_is_refused",
            "hostile::chunked_bodies::malformed_chunked_body_is_never_complete_upstream",
        ],
    ),
    (
        "a Transfer-Encoding is exactly chunked, once, and never beside a length or in HTTP/1.0",
        &[
            "hostile::message_framing::transfer_encoding_other_than_chunked_is_refused",
            "hostile::message_framing::content_length_with_transfer_encoding_is_ignored",
            "hostile::content_length_with_chunked_smuggles_no_request",
        ],
    ),
    (
        "a length is one number, and one beyond 2^63 is too large",
        &[
            "hostile::message_framing::invalid_content_length_is_refused",
            "hostile::content_length_beyond_the_limit_is_refused_with_413",
            "hostile::http2::content_length_mismatch_is_never_complete_upstream",
        ],
    ),
    (
        "a message over HTTP/2 that is reset before its end never becomes a whole, whatever the reset says",
        &[
            "streaming::body_reset_with_no_error_is_never_complete",
            "upstream_http2::response_reset_with_no_error_never_looks_complete",
            "properties::http2_frames_end_in_time_and_forward_only_complete_requests",
        ],
    ),
    (
        "requests that wait for a token are bounded, and cost little",
        &[
            "token_waiters::token_waits_beyond_the_limit_fail_at_once",
            "token_waiters::ticket_waits_beyond_the_limit_fail_at_once",
            "token_waiters::waiting_request_uses_less_than_four_kib",
            "token_waiters::a_stream_that_waits_costs_less_than_four_kib",
        ],
    ),
    (
        "how a body is framed further on is decided here, and never copied",
        &[
            "hostile::message_framing::valid_framing_is_forwarded_as_valid_framing",
            "hostile::chunked_bodies::chunk_extensions_and_trailers_are_not_forwarded",
            "forwarding::body_keeps_its_framing_and_bytes",
            "forwarding::post_without_body_sends_content_length_zero",
        ],
    ),
    (
        "what belongs to one connection, or is named by Connection, goes no further in either direction",
        &[
            "headers::client_and_hop_by_hop_headers_are_not_forwarded",
            "headers::upstream_hop_by_hop_headers_are_not_forwarded",
            "headers::http2_client_headers_are_filtered_too",
            "hostile::header_lines::connection_headers_do_not_affect_the_upstream_request",
        ],
    ),
    (
        "an offer to change the protocol is left alone, and what follows it is a request of its own",
        &[
            "headers::h2c_upgrade_offer_is_ignored",
            "hostile::header_lines::connection_headers_do_not_affect_the_upstream_request",
        ],
    ),
    (
        "header names and pseudo-fields of HTTP/2 are as strict as lines of HTTP/1",
        &[
            "hostile::http2::invalid_header_fields_are_refused",
            "hostile::http2::unusual_valid_headers_are_forwarded_sanitized",
        ],
    ),
    (
        "a body that nobody has read is no request: after an early refusal the connection is drained or closed",
        &[
            "hostile::bytes_of_a_refused_body_are_not_parsed_as_a_request",
            "errors::client_sending_a_refused_body_still_gets_the_response",
            "gettoken::gettoken_with_a_body_returns_the_pass",
            "faults::early_responses::early_response_reaches_an_http11_client",
        ],
    ),
    (
        "requests sent ahead are answered once each and in their order, however they are cut",
        &[
            "hostile::pipelined_requests_are_answered_in_order",
            "hostile::pipelining::pipelined_requests_in_one_packet_are_served_in_order",
            "hostile::pipelining::pipeline_split_at_every_byte_is_served_in_order",
            "hostile::pipelining::pipeline_sent_byte_by_byte_is_served_in_order",
        ],
    ),
    (
        "a head has at most 100 lines and 64 KiB, and the answer to a longer one says so",
        &[
            "hostile::header_lines::request_head_size_is_bounded",
            "hostile::oversized_request_head_is_refused",
            "hostile::http2_floods::endless_header_block_is_cut_off",
            "hostile::http2_floods::hpack_bomb_is_refused",
        ],
    ),
    // Where a request goes.
    (
        "Host is one, is well formed, and means nothing further on",
        &[
            "hostile::request_targets::host_must_be_single_and_valid_and_is_not_forwarded",
            "hostile::invalid_host_is_refused",
            "hostile::client_host_header_is_not_forwarded",
        ],
    ),
    (
        "a target in absolute form means this proxy or its upstream; the upstream is the configuration's alone",
        &[
            "hostile::request_targets::absolute_target_must_name_the_proxy_or_upstream",
            "hostile::absolute_target_with_a_foreign_authority_is_refused",
            "curl_and_python::curl_using_it_as_a_forward_proxy_is_refused",
        ],
    ),
    (
        "only seven methods, in exactly their letters, go out; CONNECT, TRACE and trace are refused",
        &[
            "forwarding::method_in_other_case_is_refused",
            "hostile::ambiguous_request_heads_are_refused",
            "hostile::request_targets::invalid_request_line_is_refused",
            "hostile::http2::invalid_header_fields_are_refused",
        ],
    ),
    (
        "a path that may mean another one, encoded once or twice, is refused",
        &[
            "hostile::request_targets::path_is_forwarded_unchanged_or_refused",
            "hostile::ambiguous_paths_are_refused",
            "src/proxy/target.rs::decoded_path_stays_below_the_api_root",
        ],
    ),
    (
        "an access_token of the client's is found under every encoded name, and all else stays byte for byte",
        &[
            "forwarding::client_access_token_is_removed_under_any_encoding",
            "forwarding::query_is_forwarded_byte_for_byte",
            "hostile::request_targets::path_is_forwarded_unchanged_or_refused",
            "src/proxy/query.rs::with_token_agrees_with_a_full_parser",
        ],
    ),
    (
        "what a client may call is decided by its decoded path, and by nothing that a query or a header says",
        &[
            "authentication::allow_list_restricts_methods_and_paths",
            "rate_limits::allow_patterns_match_method_path_and_segment",
            "headers::client_and_hop_by_hop_headers_are_not_forwarded",
        ],
    ),
    (
        "what a client shows to be let in never leaves, and what it shows badly opens nothing",
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
    // Answers.
    (
        "an answer that two parsers could read in two ways, or that switches protocols unasked, is no answer",
        &[
            "faults::invalid_responses::invalid_response_returns_upstream_broke",
            "upstream_http2::response_with_an_invalid_header_name_is_upstream_broke",
        ],
    ),
    (
        "an answer that ends with its connection is whole only where it may be, and a short one never looks whole",
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
        "an answer that nobody asked for is nobody's",
        &[
            "faults::idle_connections::unsolicited_response_reaches_no_client",
            "faults::idle_connections::unsolicited_response_reaches_none_of_many_clients",
            "faults::invalid_responses::surplus_response_is_discarded_before_the_next_request",
        ],
    ),
    // What is sent again.
    (
        "what is not idempotent is not sent again once it may have been seen; what surely was not seen is",
        &[
            "faults::idle_connections::request_on_a_closing_connection_is_retried_if_idempotent",
            "replay::get_on_a_closing_connection_is_retried_and_post_is_not",
            "replay::pooled_connection_closed_by_wecom_is_replaced",
            "upstream_http2::closed_http2_connection_retries_get_and_fails_post",
            "upstream_http2::refused_stream_is_retried_once",
        ],
    ),
    (
        "what fails on a fresh connection is not sent again",
        &["faults::idle_connections::request_failed_on_a_new_connection_is_not_retried"],
    ),
    (
        "only a kept body is sent again, and what is kept is bounded",
        &[
            "replay::upload_refused_before_its_end_is_replayed_completely",
            "replay::body_beyond_replay_memory_spills_to_an_unnamed_file",
            "replay::unwritable_replay_directory_only_disables_the_retry",
            "replay_disk::declared_body_beyond_the_budget_is_refused_unsent",
            "replay_disk::announced_body_that_is_not_sent_takes_no_disk",
            "replay_disk::client_that_fills_the_disk_leaves_others_half_of_it",
            "replay_disk::body_outgrowing_the_disk_budget_is_sent_without_retry",
            "replay_disk::replay_bodies_stay_within_their_budgets",
            "properties::replay_bodies_stay_in_budget_and_replay_exactly",
        ],
    ),
    (
        "a body that is nearly all chunk framing is refused, and never weighs more than its data",
        &[
            "replay_disk::request_of_mostly_chunk_framing_is_refused",
            "replay_disk::response_of_mostly_chunk_framing_is_upstream_broke",
            "memory_usage::replay_chunks_between_framing_use_what_is_counted",
            "memory_usage::json_in_one_byte_chunks_uses_little_memory",
        ],
    ),
    // Every wait ends.
    (
        "a silent connection is closed, whatever protocol it was going to speak",
        &[
            "timeouts::idle_connection_is_closed",
            "timeouts::idle_http2_connection_is_closed",
            "timeouts::quiet_http2_client_is_pinged",
        ],
    ),
    (
        "half a head, or half a preface, is cut off, and one that drips too",
        &[
            "timeouts::incomplete_request_head_is_closed",
            "timeouts::slow_request_head_is_closed",
            "timeouts::second_request_head_is_timed_too",
            "timeouts::incomplete_http2_header_block_is_closed",
        ],
    ),
    (
        "a body that stalls ends, on its way in and on its way out",
        &[
            "timeouts::stalled_body_is_refused_and_the_upstream_released",
            "timeouts::response_stalled_before_forwarding_is_upstream_timeout",
            "timeouts::response_stalled_in_its_body_aborts_the_client_connection",
            "timeouts::client_not_reading_is_disconnected",
            "timeouts::http2_client_not_reading_is_reset",
            "timeouts::upstream_that_never_reads_is_upstream_timeout",
        ],
    ),
    (
        "an answer that does not begin, or drips before its head ends, is upstream-timeout",
        &[
            "timeouts::missing_response_returns_upstream_timeout",
            "faults::invalid_responses::incomplete_response_returns_upstream_timeout",
            "timeouts::gettoken_timeout_is_token_unavailable",
        ],
    ),
    (
        "nobody waits without end for what somebody else fetches",
        &[
            "tickets::slow_ticket_response_times_out_for_all_waiters",
            "faults::tokens::invalid_gettoken_response_fails_only_the_waiting_request",
        ],
    ),
    // Nothing grows without end.
    (
        "bodies, connections and places have a bound, and who comes beyond it is told at once",
        &[
            "errors::body_above_the_limit_is_refused_declared_or_not",
            "errors::request_beyond_the_queue_timeout_gets_retry_after",
            "overload::request_with_a_full_queue_is_refused_at_once",
            "overload::full_proxy_keeps_busy_connections_and_makes_new_ones_wait",
        ],
    ),
    (
        "in a full house silence and half a request make room",
        &[
            "overload::full_proxy_evicts_longest_idle_connections_and_logs_once",
            "overload::partial_requests_block_no_client_of_a_full_proxy",
            "client_tls::pending_tls_handshakes_block_no_client_of_a_full_proxy",
        ],
    ),
    (
        "callers without a key take no place from callers with one",
        &[
            "hostile::unauthenticated::unauthenticated_connections_block_no_authenticated_client",
            "hostile::unauthenticated::reconnecting_clients_block_no_authenticated_client",
            "hostile::unauthenticated::unix_socket_clients_block_no_authenticated_client",
            "hostile::unauthenticated::authenticated_connection_is_not_evicted_for_others",
        ],
    ),
    (
        "what a connection makes the proxy hold before it shows a key is little, and goes again",
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
        "little said causes little work: no amplification of memory or time",
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
        "streams and windows of HTTP/2 have bounds of our own",
        &[
            "hostile::http2_floods::flow_control_windows_are_bounded",
            "hostile::http2_floods::streams_beyond_the_limit_are_refused_and_others_served",
            "hostile::http2_floods::data_beyond_the_window_resets_stream_or_connection",
            "hostile::http2_floods::closed_windows_block_no_other_client",
        ],
    ),
    (
        "without descriptors accepting neither ends nor spins",
        &["overload::descriptor_exhaustion_neither_spins_nor_floods_the_log"],
    ),
    (
        "what strangers repeat fills no log",
        &[
            "log::repeated_client_faults_do_not_fill_the_log",
            "log::requests_do_not_wait_for_a_blocked_log_reader",
            "src/server/log_throttle.rs::throttle_over_limit_suppresses_and_counts",
        ],
    ),
    // A client that leaves, a process that ends.
    (
        "a client that leaves takes its call along, and nobody else's token",
        &[
            "faults::client_aborts::client_abort_releases_all_its_resources",
            "src/tokens/tests/lifecycle.rs::cancelled_callers_do_not_cancel_the_refresh",
            "tickets::aborting_client_does_not_fail_other_ticket_waiters",
        ],
    ),
    (
        "an orderly end finishes what is in flight, tells clients of HTTP/2, and waits for no silence",
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
        "from one process to the next nobody is refused",
        &["socket_handover::socket_handover_refuses_no_client"],
    ),
    (
        "a reload is all or nothing: a bad file keeps the old one, and no request is disturbed",
        &[
            "reload::invalid_file_changes_nothing_on_reload",
            "reload::request_in_flight_survives_removal_of_its_agent",
            "reload::reload_under_load_loses_nothing_and_swaps_certificates",
        ],
    ),
    (
        "a reload opens nothing that was closed, and what a changed client_ca excludes is closed",
        &[
            "reload_access::reload_without_clients_leaves_a_closed_proxy_closed",
            "reload_access::include_pattern_that_lost_its_files_fails_the_reload",
            "client_ca::client_ca_that_loses_an_authority_closes_its_clients",
        ],
    ),
    (
        "an error names nothing of the network behind the proxy, and guessing keys is slow for the guesser alone",
        &[
            "errors::error_message_hides_addresses_that_the_log_shows",
            "key_guessing::wrong_keys_are_delayed_and_good_keys_are_not",
            "key_guessing::delayed_guesses_yield_connections_in_a_full_proxy",
        ],
    ),
    // Secrets.
    (
        "no caller sees a credential, and no error, log or page names one",
        &[
            "gettoken::gettoken_works_without_the_upstream",
            "errors::proxy_errors_are_json_and_show_no_secret",
            "secret_leaks::plain_upstream_leaves_no_secret_in_the_log",
            "secret_leaks::tls_http2_upstream_leaves_no_secret_in_the_log",
            "secret_leaks::redirect_location_has_its_token_removed",
        ],
    ),
    // Tokens.
    (
        "a refusal counts only against the token that it was sent with, however late and in whatever order it comes",
        &[
            "src/tokens/tests/lifecycle.rs::refusal_of_an_old_token_causes_no_gettoken",
            "src/tokens/tests/errors.rs::repeated_refusals_of_a_new_token_count_once",
            "src/tokens/tests/interleavings.rs::random_interleavings_keep_every_invariant",
            "token_refresh::token_revoked_under_a_thousand_clients_is_refreshed_once",
        ],
    ),
    (
        "a token that could change a URL is not used",
        &[
            "faults::tokens::invalid_gettoken_response_fails_only_the_waiting_request",
            "src/wecom/response/gettoken_response.rs::only_a_url_safe_token_is_accepted",
        ],
    ),
    (
        "whatever life a token claims, nothing panics and nothing is asked again and again",
        &[
            "faults::tokens::token_with_any_expires_in_is_used",
            "src/wecom/response/gettoken_response.rs::any_expires_in_is_tolerated",
            "src/tokens/tests/call_limits.rs::shortest_lived_tokens_do_not_spin_the_refresh_loop",
        ],
    ),
    (
        "a gettoken that is answered with a page, half an answer or no token costs the request that waits, and no other",
        &["faults::tokens::invalid_gettoken_response_fails_only_the_waiting_request"],
    ),
];

/// The first versions without flaws that are known and would matter here.
const MIN_VERSIONS: &[(&str, [u64; 3])] = &[
    ("aws-lc-sys", [0, 39, 0]),
    ("bytes", [1, 11, 1]),
    ("h2", [0, 4, 18]),
    ("hyper", [1, 11, 0]),
    ("rustls", [0, 23, 18]),
    ("rustls-webpki", [0, 103, 13]),
    ("tracing-subscriber", [0, 3, 20]),
];

/// The file in which a test stands, and its name.
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
    for (promise, tests) in GUARANTEES {
        assert!(!tests.is_empty(), "{promise}");
        for test in *tests {
            let (file, name) = test_location(test);
            let text = fs::read_to_string(root.join(&file)).unwrap_or_default();
            let before = text.split_once(&format!("fn {name}(")).map(|(before, _)| before);
            // The last line but one, for the last is what stands before `fn`.
            let is_test = before.is_some_and(|before| {
                before
                    .lines()
                    .rev()
                    .take(3)
                    .any(|line| line.trim_start().starts_with("#[") && line.contains("test"))
            });
            if !is_test {
                missing.push(format!("{promise}: {test} in {file}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn dependencies_have_no_known_vulnerable_version() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lock: toml::Table =
        fs::read_to_string(root.join("Cargo.lock")).expect("the lock file").parse().expect("it is TOML");
    let packages = lock["package"].as_array().expect("a list");
    for (name, mended) in MIN_VERSIONS {
        let versions: Vec<_> =
            packages.iter().filter(|package| package["name"].as_str() == Some(name)).collect();
        assert!(!versions.is_empty(), "{name} is used no more: take it out here");
        for package in versions {
            let version = package["version"].as_str().expect("a version");
            let numbers =
                version.split(['.', '-', '+']).take(3).map(|number| number.parse().expect("a number"));
            assert!(numbers.collect::<Vec<u64>>() >= mended.to_vec(), "{name} {version}");
        }
    }
    let unmaintained = |package: &&toml::Value| package["name"].as_str() == Some("rustls-pemfile");
    assert!(packages.iter().find(unmaintained).is_none(), "rustls-pemfile is maintained no more");
}
