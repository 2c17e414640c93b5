//! What proxies are known to break on, and the tests that would see it here. A promise without a test is none, and a test
//! that has gone takes its promise along: this list finds both.

use std::{fs, path::Path};

/// What is promised, and the tests of it: a story's module and name, or a file of `src/` and the name of a test in it.
const PROMISES: &[(&str, &[&str])] = &[
    // What is said of one connection, and what ends a message.
    (
        "a request that two parsers could read in two ways is refused",
        &[
            "hostile::heads_that_are_not_what_they_seem_are_refused",
            "hostile::heads::a_line_that_is_no_header_is_refused",
            "hostile::heads::a_line_that_is_doubtful_is_refused_or_goes_out_clean",
            "hostile::targets::a_first_line_that_is_none_is_refused",
            "hostile::chunks::a_body_that_is_not_chunked_as_it_should_be_never_becomes_a_whole",
        ],
    ),
    (
        "a Transfer-Encoding is exactly chunked, once, and never beside a length or in HTTP/1.0",
        &[
            "hostile::framing::a_coding_that_is_not_chunked_is_refused",
            "hostile::framing::a_length_beside_a_coding_decides_nothing",
            "hostile::a_length_beside_chunks_smuggles_nothing",
        ],
    ),
    (
        "a length is one number, and one beyond 2^63 is too large",
        &[
            "hostile::framing::a_length_that_is_none_is_refused",
            "hostile::a_length_beyond_all_bounds_is_too_large",
            "hostile::http2::a_length_that_its_data_belies_never_becomes_a_whole",
        ],
    ),
    (
        "a message over HTTP/2 that is reset before its end never becomes a whole, whatever the reset says",
        &[
            "stream::a_body_reset_with_no_error_never_becomes_whole",
            "upstream_http2::a_response_reset_with_no_error_never_looks_whole",
            "properties::frames_end_in_bounded_time_and_only_whole_requests_go_out",
        ],
    ),
    (
        "requests that wait for a token are bounded, and cost little",
        &[
            "waiting::waits_for_one_token_beyond_the_bound_fail_at_once",
            "waiting::waits_for_a_ticket_beyond_the_bound_fail_at_once",
            "waiting::a_request_that_waits_costs_less_than_four_kib",
            "waiting::a_stream_that_waits_costs_less_than_four_kib",
        ],
    ),
    (
        "how a body is framed further on is decided here, and never copied",
        &[
            "hostile::framing::what_is_framed_well_goes_out_framed_well",
            "hostile::chunks::what_is_said_beside_chunks_goes_nowhere",
            "forward::a_body_keeps_its_framing_and_its_bytes",
            "forward::a_post_without_a_body_says_so",
        ],
    ),
    (
        "what belongs to one connection, or is named by Connection, goes no further in either direction",
        &[
            "headers::what_belongs_to_the_client_or_its_connection_stays_here",
            "headers::what_belongs_to_the_upstreams_connection_stays_there",
            "headers::an_http_2_caller_loses_its_headers_of_the_connection_too",
            "hostile::heads::what_a_client_says_of_its_connection_changes_nothing_further_on",
        ],
    ),
    (
        "an offer to change the protocol is left alone, and what follows it is a request of its own",
        &[
            "headers::javas_offer_of_h2c_is_left_alone",
            "hostile::heads::what_a_client_says_of_its_connection_changes_nothing_further_on",
        ],
    ),
    (
        "header names and pseudo-fields of HTTP/2 are as strict as lines of HTTP/1",
        &[
            "hostile::http2::fields_that_are_none_are_refused",
            "hostile::http2::what_is_odd_and_sound_goes_out_clean",
        ],
    ),
    (
        "a body that nobody has read is no request: after an early refusal the connection is drained or closed",
        &[
            "hostile::what_follows_a_refused_body_is_not_taken_for_a_request",
            "errors::a_body_refused_early_costs_the_caller_neither_the_answer_nor_a_wait",
            "gettoken::a_body_that_nobody_asked_for_does_not_cost_the_pass_nor_the_connection_unannounced",
            "faults::early::an_early_answer_reaches_a_caller_of_http_1_1",
        ],
    ),
    (
        "requests sent ahead are answered once each and in their order, however they are cut",
        &[
            "hostile::requests_sent_all_at_once_are_answered_in_order",
            "hostile::pipelines::trains_of_requests_in_one_packet",
            "hostile::pipelines::a_train_cut_at_every_byte",
            "hostile::pipelines::a_train_byte_by_byte",
        ],
    ),
    (
        "a head has at most 100 lines and 64 KiB, and the answer to a longer one says so",
        &[
            "hostile::heads::a_head_of_any_size_has_an_end",
            "hostile::a_head_that_is_too_long_is_refused",
            "hostile::floods::a_head_that_never_ends_is_cut_off",
            "hostile::floods::a_small_head_that_becomes_a_large_one_is_refused",
        ],
    ),
    // Where a request goes.
    (
        "Host is one, is well formed, and means nothing further on",
        &[
            "hostile::targets::a_host_is_one_and_means_nothing_further_on",
            "hostile::a_host_that_is_none_is_refused",
            "hostile::a_host_of_the_clients_own_choice_goes_nowhere",
        ],
    ),
    (
        "a target in absolute form means this proxy or its upstream; the upstream is the configuration's alone",
        &[
            "hostile::targets::an_absolute_target_means_this_proxy_or_its_upstream",
            "hostile::only_a_target_that_means_this_proxy_or_its_upstream_is_taken",
            "real_programs::curl_takes_the_proxy_for_a_forward_proxy_and_nobody_gets_out",
        ],
    ),
    (
        "only seven methods, in exactly their letters, go out; CONNECT, TRACE and trace are refused",
        &[
            "forward::a_method_in_other_letters_is_refused_and_not_sent",
            "hostile::heads_that_are_not_what_they_seem_are_refused",
            "hostile::targets::a_first_line_that_is_none_is_refused",
            "hostile::http2::fields_that_are_none_are_refused",
        ],
    ),
    (
        "a path that may mean another one, encoded once or twice, is refused",
        &[
            "hostile::targets::a_path_goes_out_as_it_came_or_not_at_all",
            "hostile::paths_that_may_mean_another_are_refused",
            "src/proxy/target.rs::what_goes_out_stays_below_the_root_however_often_it_is_decoded",
        ],
    ),
    (
        "an access_token of the client's is found under every encoded name, and all else stays byte for byte",
        &[
            "forward::a_token_of_the_callers_own_is_taken_out_under_every_encoded_name",
            "forward::the_query_goes_through_byte_for_byte",
            "hostile::targets::a_path_goes_out_as_it_came_or_not_at_all",
            "src/proxy/query.rs::a_model_that_parses_every_parameter_agrees",
        ],
    ),
    (
        "what a client may call is decided by its decoded path, and by nothing that a query or a header says",
        &[
            "identify::an_allow_list_holds_for_methods_and_paths",
            "limits::allow_patterns_mean_method_path_and_segment",
            "headers::what_belongs_to_the_client_or_its_connection_stays_here",
        ],
    ),
    (
        "what a client shows to be let in never leaves, and what it shows badly opens nothing",
        &[
            "identify::a_key_is_taken_in_each_of_its_forms_and_never_leaves",
            "hostile::heads::a_key_that_is_shown_badly_opens_nothing",
            "passes::a_pass_chooses_its_agent_with_or_without_a_prefix_and_never_leaves",
            "strays::pass_elsewhere_in_a_target_is_refused",
            "strays::key_elsewhere_in_a_target_is_refused",
            "strays::header_that_repeats_a_pass_or_a_key_stays_here",
            "strays::what_a_network_says_of_its_client_stays_here",
        ],
    ),
    // Answers.
    (
        "an answer that two parsers could read in two ways, or that switches protocols unasked, is no answer",
        &[
            "faults::answers::what_is_no_answer_is_upstream_broke",
            "upstream_http2::a_header_whose_name_is_none_is_not_passed_on",
        ],
    ),
    (
        "an answer that ends with its connection is whole only where it may be, and a short one never looks whole",
        &[
            "faults::answers::an_answer_until_the_close_is_whole_and_one_that_drips_too",
            "faults::answers::what_is_short_never_looks_whole",
            "faults::answers::what_stalls_never_looks_whole",
            "faults::breaks::a_caller_of_http_1_0_is_told_the_truth",
            "faults::breaks::a_caller_of_http_1_1_is_told_the_truth",
            "faults::breaks::a_caller_of_http_2_is_told_the_truth",
        ],
    ),
    (
        "an answer that nobody asked for is nobody's",
        &[
            "faults::idle::an_answer_that_nobody_asked_for_is_nobodys",
            "faults::idle::an_answer_that_nobody_asked_for_is_nobodys_among_many_callers",
            "faults::answers::of_several_answers_the_first_counts_and_the_next_request_gets_its_own",
        ],
    ),
    // What is sent again.
    (
        "what is not idempotent is not sent again once it may have been seen; what surely was not seen is",
        &[
            "faults::idle::what_is_closed_just_as_a_request_is_sent_is_sent_again_where_it_may_be",
            "replay::a_get_on_a_connection_that_closes_is_sent_again_and_a_post_is_not",
            "replay::a_kept_connection_that_wecom_closed_is_noticed",
            "upstream_http2::a_connection_that_ends_costs_a_get_nothing_and_a_post_its_answer",
            "upstream_http2::what_the_upstream_refused_is_sent_once_more",
        ],
    ),
    (
        "what fails on a fresh connection is not sent again",
        &["faults::idle::what_fails_on_a_fresh_connection_is_not_sent_again"],
    ),
    (
        "only a kept body is sent again, and what is kept is bounded",
        &[
            "replay::an_upload_that_is_refused_before_its_end_is_sent_whole",
            "replay::a_body_beyond_the_replay_memory_lies_in_a_file_without_a_name",
            "replay::a_replay_directory_that_cannot_be_written_costs_only_the_retry",
            "replay_disk::announced_body_that_fits_nowhere_is_refused_unsent",
            "replay_disk::announced_body_that_is_not_sent_takes_no_disk",
            "replay_disk::client_that_fills_the_disk_leaves_others_half_of_it",
            "replay_disk::body_that_outgrows_the_disk_goes_on_without_a_retry",
            "replay_disk::kept_bodies_never_take_more_than_their_budgets",
            "properties::kept_bodies_cost_what_is_counted_and_come_back_whole",
        ],
    ),
    (
        "a body that is nearly all chunk framing is refused, and never weighs more than its data",
        &[
            "replay_disk::request_that_is_all_chunk_framing_is_refused",
            "replay_disk::response_that_is_all_chunk_framing_is_upstream_broke",
            "weight::kept_chunks_between_much_framing_weigh_what_is_counted",
            "weight::json_of_single_bytes_weighs_little_while_it_is_looked_at",
        ],
    ),
    // Every wait ends.
    (
        "a silent connection is closed, whatever protocol it was going to speak",
        &[
            "timeouts::a_silent_connection_is_closed",
            "timeouts::a_silent_http_2_connection_is_closed",
            "timeouts::a_client_of_http_2_that_may_be_gone_is_asked",
        ],
    ),
    (
        "half a head, or half a preface, is cut off, and one that drips too",
        &[
            "timeouts::a_head_that_does_not_end_is_cut_off",
            "timeouts::a_head_that_drips_is_cut_off_all_the_same",
            "timeouts::the_second_head_on_a_connection_is_bounded_as_well",
            "timeouts::half_a_head_of_http_2_is_cut_off",
        ],
    ),
    (
        "a body that stalls ends, on its way in and on its way out",
        &[
            "timeouts::a_body_that_stalls_is_refused_and_the_upstream_let_go",
            "timeouts::an_answer_that_stalls_before_its_head_went_on_is_upstream_timeout",
            "timeouts::an_answer_that_stalls_later_breaks_the_callers_connection_off",
            "timeouts::a_caller_that_takes_no_answer_is_let_go",
            "timeouts::an_http_2_caller_that_takes_no_answer_is_let_go",
            "timeouts::an_upstream_that_never_reads_is_upstream_timeout",
        ],
    ),
    (
        "an answer that does not begin, or drips before its head ends, is upstream-timeout",
        &[
            "timeouts::an_answer_that_does_not_begin_is_upstream_timeout",
            "faults::answers::what_never_becomes_an_answer_is_upstream_timeout",
            "timeouts::gettoken_that_gets_no_answer_is_token_unavailable",
        ],
    ),
    (
        "nobody waits without end for what somebody else fetches",
        &[
            "tickets::a_ticket_that_drips_holds_nobody_up_for_ever",
            "faults::tokens::a_gettoken_without_sense_costs_the_request_that_waits_and_no_other",
        ],
    ),
    // Nothing grows without end.
    (
        "bodies, connections and places have a bound, and who comes beyond it is told at once",
        &[
            "errors::a_body_above_the_bound_is_refused_whether_declared_or_not",
            "errors::too_many_at_once_are_told_to_come_again",
            "overload::who_finds_the_row_full_is_told_at_once",
            "overload::connections_with_a_request_stay_and_who_comes_then_waits_for_one_to_end",
        ],
    ),
    (
        "in a full house silence and half a request make room",
        &[
            "overload::in_a_full_house_the_longest_idle_connections_make_room_and_the_log_says_so_once",
            "overload::what_only_begins_keeps_nobody_out_of_a_full_house",
            "tls_clients::clients_that_do_not_greet_keep_nobody_out_of_a_full_house",
        ],
    ),
    (
        "callers without a key take no place from callers with one",
        &[
            "hostile::unauthorized::a_crowd_without_keys_keeps_no_caller_with_one_out",
            "hostile::unauthorized::a_crowd_that_keeps_coming_keeps_no_caller_out",
            "hostile::unauthorized::a_crowd_on_a_unix_socket_keeps_no_caller_out",
            "hostile::unauthorized::a_connection_with_a_key_outlives_a_crowd_without",
        ],
    ),
    (
        "what a connection makes the proxy hold before it shows a key is little, and goes again",
        &[
            "hostile::unauthorized::refused_streams_that_are_not_taken_hold_little",
            "hostile::unauthorized::waves_of_refused_streams_leave_no_memory_behind",
            "hostile::unauthorized::refused_streams_beyond_a_few_are_reset_and_not_by_settings",
            "hostile::unauthorized::many_streams_at_once_with_a_good_key_are_all_served",
            "hostile::unauthorized::a_refused_stream_that_is_not_taken_is_reset_soon",
            "hostile::unauthorized::what_a_connection_asks_without_a_key_has_a_bound",
        ],
    ),
    (
        "little said causes little work: no amplification of memory or time",
        &[
            "weight::large_bodies_weigh_little",
            "weight::an_answer_that_nobody_takes_does_not_grow_with_every_byte_of_the_upload",
            "weight::json_that_never_shows_an_errcode_weighs_little",
            "hostile::floods::rapid_resets_have_a_bound",
            "hostile::floods::frames_that_only_cost_work_are_worked_off_or_end_the_connection",
            "hostile::floods::a_body_of_nothing_has_a_bound",
            "hostile::floods::a_client_that_reads_nothing_while_it_pings_holds_nobody_up",
        ],
    ),
    (
        "streams and windows of HTTP/2 have bounds of our own",
        &[
            "hostile::floods::what_may_be_sent_ahead_has_a_bound",
            "hostile::floods::more_streams_than_allowed_are_refused_and_the_others_served",
            "hostile::floods::more_data_than_the_window_holds_ends_the_stream_or_the_connection",
            "hostile::floods::windows_that_are_shut_hold_nobody_else_up",
        ],
    ),
    (
        "without descriptors accepting neither ends nor spins",
        &[
            "overload::without_descriptors_it_neither_spins_nor_floods_the_log_and_goes_on_when_there_are_some",
        ],
    ),
    (
        "what strangers repeat fills no log",
        &[
            "log::what_a_stranger_repeats_does_not_fill_the_log",
            "log::requests_do_not_wait_for_whoever_reads_the_log",
            "src/server/hushed.rs::a_few_are_said_and_the_others_counted",
        ],
    ),
    // A client that leaves, a process that ends.
    (
        "a client that leaves takes its call along, and nobody else's token",
        &[
            "faults::leaving::a_caller_who_leaves_takes_everything_along",
            "src/tokens/tests/life.rs::callers_who_go_away_take_nothing_from_the_others",
            "tickets::a_caller_who_leaves_takes_nobodys_ticket_away",
        ],
    ),
    (
        "an orderly end finishes what is in flight, tells clients of HTTP/2, and waits for no silence",
        &[
            "drain::a_request_in_flight_finishes_and_new_connections_are_refused",
            "drain::a_stream_of_http2_in_flight_finishes",
            "drain::idle_connections_close_at_once",
            "drain::clients_that_do_not_hear_and_half_a_head_hold_up_no_end",
            "drain::when_the_grace_has_passed_it_ends_anyway",
            "drain::a_second_signal_ends_it_at_once",
        ],
    ),
    (
        "from one process to the next nobody is refused",
        &["takeover::from_one_process_to_the_next_nobody_is_refused"],
    ),
    (
        "a reload is all or nothing: a bad file keeps the old one, and no request is disturbed",
        &[
            "reload::a_file_that_does_not_pass_changes_nothing",
            "reload::a_request_in_flight_is_not_disturbed_even_if_its_agent_goes",
            "reload::reloads_under_load_lose_nothing_and_new_handshakes_see_the_new_certificate",
        ],
    ),
    (
        "a reload opens nothing that was closed, and what a changed client_ca excludes is closed",
        &[
            "reload_open::reload_without_clients_leaves_a_closed_proxy_closed",
            "reload_open::include_that_matches_nothing_any_more_fails_the_reload",
            "client_ca::client_ca_that_loses_an_authority_closes_its_clients",
        ],
    ),
    (
        "an error names nothing of the network behind the proxy, and guessing keys is slow for the guesser alone",
        &[
            "errors::errmsg_of_a_failure_names_no_address_but_the_log_does",
            "guesses::wrong_keys_are_held_back_and_good_ones_are_not",
            "guesses::held_back_guesses_keep_nobody_out_of_a_full_proxy",
        ],
    ),
    // Secrets.
    (
        "no caller sees a credential, and no error, log or page names one",
        &[
            "gettoken::an_answer_says_nothing_of_the_real_token_and_needs_none",
            "errors::every_answer_of_the_proxys_own_is_json_that_names_no_secret",
            "secrecy::a_plain_upstream_leaves_no_secret_in_the_log",
            "secrecy::an_upstream_over_tls_and_http2_leaves_no_secret_in_the_log",
            "secrecy::a_redirect_that_says_the_url_back_says_no_token",
        ],
    ),
    // Tokens.
    (
        "a refusal counts only against the token that it was sent with, however late and in whatever order it comes",
        &[
            "src/tokens/tests/life.rs::a_refusal_counts_only_against_the_token_it_was_sent_with",
            "src/tokens/tests/trouble.rs::two_hundred_refused_again_together_count_once",
            "src/tokens/tests/interleavings.rs::no_order_of_events_breaks_a_promise",
            "refresh::a_token_voided_under_a_thousand_callers_is_renewed_once",
        ],
    ),
    (
        "a token that could change a URL is not used",
        &[
            "faults::tokens::a_gettoken_without_sense_costs_the_request_that_waits_and_no_other",
            "src/wecom/reply/grant.rs::only_a_token_that_fits_a_url",
        ],
    ),
    (
        "whatever life a token claims, nothing panics and nothing is asked again and again",
        &[
            "faults::tokens::whatever_gettoken_says_of_its_life_the_token_serves",
            "src/wecom/reply/grant.rs::any_expires_in_is_survived",
            "src/tokens/tests/limits.rs::tokens_of_the_shortest_life_do_not_busy_the_loop",
        ],
    ),
    (
        "a gettoken that is answered with a page, half an answer or no token costs the request that waits, and no other",
        &["faults::tokens::a_gettoken_without_sense_costs_the_request_that_waits_and_no_other"],
    ),
];

/// The first versions without flaws that are known and would matter here.
const MENDED: &[(&str, [u64; 3])] = &[
    ("aws-lc-sys", [0, 39, 0]),
    ("bytes", [1, 11, 1]),
    ("h2", [0, 4, 18]),
    ("hyper", [1, 11, 0]),
    ("rustls", [0, 23, 18]),
    ("rustls-webpki", [0, 103, 13]),
    ("tracing-subscriber", [0, 3, 20]),
];

/// The file in which a test stands, and its name.
fn place(test: &str) -> (String, &str) {
    let (module, name) = test.rsplit_once("::").expect("a module and a name");
    match module.starts_with("src/") {
        true => (module.to_owned(), name),
        false => (format!("tests/it/{}.rs", module.replace("::", "/")), name),
    }
}

#[test]
fn every_promise_has_tests_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    for (promise, tests) in PROMISES {
        assert!(!tests.is_empty(), "{promise}");
        for test in *tests {
            let (file, name) = place(test);
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
fn no_version_with_a_known_flaw_is_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lock: toml::Table =
        fs::read_to_string(root.join("Cargo.lock")).expect("the lock file").parse().expect("it is TOML");
    let packages = lock["package"].as_array().expect("a list");
    for (name, mended) in MENDED {
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
