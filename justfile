# Recipes for https://just.systems; each is a command that works without just too.

# List the recipes.
default:
    @just --list

# Run the proxy with proxy.toml, or with the arguments given.
run *args:
    cargo run --release -- {{ args }}

# Run the proxy in front of a simulated WeCom; nothing to configure.
demo *args:
    cargo run --release -- demo {{ args }}

# Run all tests, then the leak check and the instruction count; arguments go to cargo test, which is then the only step.
test *args:
    sh tests/run.sh {{ args }}

# Count instructions against benches/baseline.txt, then measure beside nginx and HAProxy.
bench:
    cargo bench --locked --bench instructions
    python3 bench/run.py

# Fuzz one target of fuzz/fuzz_targets for some seconds; needs `cargo install --locked cargo-fuzz` and the nightly toolchain.
fuzz target="request_head" seconds="60":
    cargo +nightly fuzz run -s none {{ target }} -- -max_total_time={{ seconds }}

# Check formatting, lints and dependencies; cargo-deny is skipped if it is not installed.
lint:
    cargo fmt --check
    cargo clippy --all-targets --locked -- -D warnings
    if command -v cargo-deny > /dev/null; then cargo deny --locked check; fi
