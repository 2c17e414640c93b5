#!/bin/sh
# Runs all tests, then the leak check and the instruction count. Installs missing programs; skips nothing. Arguments are passed
# to cargo test, and then only cargo test runs.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'tests/run.sh: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

install() {
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || fail "$* is missing, and installing it needs root or sudo: install it and run this again"
        as_root=sudo
    fi
    has apt-get || fail "$* is missing, and there is no apt-get: install it and run this again"
    say "installing $*"
    forbid_services
    # Mirrors may fail temporarily, and another apt-get may hold the lock.
    apt_options="-o Acquire::Retries=5 -o DPkg::Lock::Timeout=300"
    $as_root apt-get $apt_options update -qq || fail "apt-get update failed; $* not installed"
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get $apt_options install -y -qq --no-install-recommends "$@" >/dev/null ||
        fail "apt-get could not install $*"
}

# Prevents packages from starting their services, unless a policy exists already: only the programs are needed.
forbid_services() {
    policy=/usr/sbin/policy-rc.d
    [ ! -e "$policy" ] || return 0
    trap '$as_root rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
}

has cargo || fail "cargo is missing: install Rust with rustup, which selects the version in rust-toolchain.toml"
has cc || install gcc libc6-dev
has curl || install curl
has bash || install bash
has fish || install fish
has zsh || install zsh
has kill || install procps
has openssl || install openssl
has valgrind || install valgrind
# Only the program is needed, not its service.
has prometheus-alertmanager || install prometheus-alertmanager
# The programs that deploy/ configures, to validate the files. Their services are not needed.
has systemd-analyze || install systemd
has promtool || install prometheus
has caddy || install caddy
has docker-compose || install docker-compose
# The dashboard is tested in a real browser.
has chromium || install chromium
has groff || install groff-base
{ has node && has npm; } || install nodejs npm
# Includes redis-cli; `redis-server --sentinel` runs the sentinel.
{ has redis-server && has redis-cli; } || install redis-server
# Network partitions.
has ip || install iproute2
{ has unshare && has nsenter; } || install util-linux
# Clock offsets.
has faketime || install faketime
# The load generators and the peers of bench/run.py. Debian installs servers in sbin, which may not be in PATH.
has wrk || install wrk
has h2load || install nghttp2-client
{ has nginx || [ -x /usr/sbin/nginx ]; } || install nginx
{ has haproxy || [ -x /usr/sbin/haproxy ]; } || install haproxy
[ -e /usr/lib/nginx/modules/ngx_http_lua_module.so ] || install libnginx-mod-http-lua

# The test programs run in a virtual environment, which is recreated when its requirements change.
venv=target/venv
requirements=tests/requirements.txt
if ! { cmp -s "$requirements" "$venv/installed.txt" && "$venv/bin/python" -c 'import grpc, kubernetes_validate, requests, wechatpy; import opentelemetry.proto' 2>/dev/null; }; then
    python3 -c 'import venv, ensurepip' 2>/dev/null || install python3 python3-venv
    say "creating $venv"
    rm -rf "$venv"
    mkdir -p target
    python3 -m venv "$venv" || fail "python3 cannot create a virtual environment; is python3-venv installed?"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" ||
        fail "pip could not install $requirements"
    cp "$requirements" "$venv/installed.txt"
fi

# The node modules, likewise.
modules=target/node
requirements=tests/programs/package-lock.json
if ! { cmp -s "$requirements" "$modules/installed.json" && [ -d "$modules/node_modules/node-easywechat" ]; }; then
    say "creating $modules"
    rm -rf "$modules"
    mkdir -p "$modules"
    cp tests/programs/package.json "$requirements" "$modules"
    (cd "$modules" && npm ci --loglevel=error --ignore-scripts --no-audit --no-fund) ||
        fail "npm could not install $requirements"
    cp "$requirements" "$modules/installed.json"
fi

# The last command replaces this shell, which would skip the trap.
[ -z "${policy-}" ] || { $as_root rm -f "$policy"; trap - EXIT; }

[ $# -eq 0 ] || exec cargo test --locked "$@"

# On a busy machine a few of the more than 1,700 tests may miss a time limit. Up to three failed tests run once more, alone, and
# are named; what fails again fails.
mkdir -p target
log=target/test.log
{ cargo test --locked --no-fail-fast && echo passed >"$log.status" || echo failed >"$log.status"; } 2>&1 | tee "$log"
if [ "$(cat "$log.status")" = failed ]; then
    failed=$(sed -n 's/^test \([^ ]*\) \.\.\. FAILED$/\1/p' "$log")
    count=$(printf '%s' "$failed" | grep -c . || true)
    [ "$count" -ge 1 ] && [ "$count" -le 3 ] || fail "$count tests failed"
    [ "$(grep -Ec '^ +(Running|Doc-tests) ' "$log")" -eq "$(grep -c '^test result: ' "$log")" ] || fail "a test program ended early"
    say "failed, and run again alone:" $failed
    # shellcheck disable=SC2086 # one word for each name
    cargo test --locked -- --exact --test-threads=1 $failed || fail "failed twice:" $failed
    say "passed alone; a test that depends on the machine's load is a fault to report:" $failed
fi

# A bench, because so many requests would take several minutes in an unoptimized build.
say "leak check: 200,000 requests of all kinds"
cargo bench --locked --bench leaks
exec cargo bench --locked --bench instructions
