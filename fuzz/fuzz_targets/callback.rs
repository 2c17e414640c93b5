#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wecom_proxy_fuzz::callback::check(data));
