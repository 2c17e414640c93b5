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

# Kill a process that writes to the state at random points, this often; nothing that it reported may be lost.
crash kills="200":
    STATE_CRASH_COUNT={{ kills }} cargo test --locked --test it -- state_crash:: --nocapture

# Kill a process that receives callbacks, this often; none that it answered with 200 may be lost.
crash-callbacks kills="20":
    CALLBACK_KILL_COUNT={{ kills }} cargo test --locked --test it -- accepted_messages_survive_kill_9 --nocapture

# Count commits of the state a second, beside bare SQLite on the same disk.
bench-state *directory:
    cargo bench --locked --bench state -- {{ directory }}

# Call very many corps of a suite at a cold start: one token of the suite, one of each corp; measures start and memory too.
suites corps="10000":
    cargo build --locked --release
    python3 bench/suites.py --corps {{ corps }}

# Run a real Prometheus with the alert rules beside the proxy, for about an hour: at steady load none fires, with faults the right ones do.
alerts *args:
    cargo build --locked --release
    python3 bench/alerts.py {{ args }}

# Fuzz one target of fuzz/fuzz_targets for some seconds; needs `cargo install --locked cargo-fuzz` and a C++ compiler.
fuzz target="request_head" seconds="60":
    RUSTC_BOOTSTRAP=1 cargo fuzz run -s none {{ target }} -- -max_total_time={{ seconds }}

# Check formatting, lints and dependencies; cargo-deny is skipped if it is not installed.
lint:
    cargo fmt --check
    cargo clippy --all-targets --locked -- -D warnings
    if command -v cargo-deny > /dev/null; then cargo deny --locked check; fi

# Make the packages of a release in target/package: tarball, deb, sbom, image, sums, or all of them.
package *parts:
    packaging/build {{ parts }}

# Make the site of README and docs in target/site; needs `cargo install --locked mdbook`.
site:
    packaging/site/build
