#!/bin/sh
# All tests, and behind them the search for what stays behind and the count of instructions. What they need beside Rust is
# installed where it is missing; nothing is skipped. Arguments go to cargo test, and then only that is done.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'tests/run.sh: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

install() {
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || fail "$* must be installed, and neither root nor sudo is at hand: install it and come again"
        as_root=sudo
    fi
    has apt-get || fail "$* must be installed, and there is no apt-get here: install it and come again"
    say "installing $*"
    forbid_services
    # Mirrors fail for a moment, and another apt-get may be at work.
    patient="-o Acquire::Retries=5 -o DPkg::Lock::Timeout=300"
    $as_root apt-get $patient update -qq || fail "apt-get update failed, so $* cannot be installed"
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get $patient install -y -qq --no-install-recommends "$@" >/dev/null ||
        fail "apt-get could not install $*"
}

# Of a server only the program is wanted: unless somebody else decides that already, none is started for being installed.
forbid_services() {
    policy=/usr/sbin/policy-rc.d
    [ ! -e "$policy" ] || return 0
    trap '$as_root rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
}

has cargo || fail "cargo is missing: install Rust as rust-toolchain.toml wants it (rustup does it by itself)"
has cc || install gcc libc6-dev
has curl || install curl
has bash || install bash
has kill || install procps
has openssl || install openssl
has valgrind || install valgrind
# Its service is not needed, only the program.
has prometheus-alertmanager || install prometheus-alertmanager
# What deploy/ is for, to read it. Of none of these is the service needed.
has systemd-analyze || install systemd
has promtool || install prometheus
has caddy || install caddy
has docker-compose || install docker-compose
# The dashboard is looked at in a real browser.
has chromium || install chromium
has groff || install groff-base
{ has node && has npm; } || install nodejs npm
# With redis-cli; `redis-server --sentinel` is the sentinel.
{ has redis-server && has redis-cli; } || install redis-server
# Networks that part.
has ip || install iproute2
{ has unshare && has nsenter; } || install util-linux
# Clocks that are wrong.
has faketime || install faketime
# What bench/run.py needs and compares with. Debian keeps servers where only root's PATH looks.
has wrk || install wrk
{ has nginx || [ -x /usr/sbin/nginx ]; } || install nginx
{ has haproxy || [ -x /usr/sbin/haproxy ]; } || install haproxy
[ -e /usr/lib/nginx/modules/ngx_http_lua_module.so ] || install libnginx-mod-http-lua

# The programs of the tests run in an environment of their own, made anew when what it holds has changed.
venv=target/venv
wanted=tests/requirements.txt
if ! { cmp -s "$wanted" "$venv/installed.txt" && "$venv/bin/python" -c 'import grpc, kubernetes_validate, requests, wechatpy; import opentelemetry.proto' 2>/dev/null; }; then
    python3 -c 'import venv, ensurepip' 2>/dev/null || install python3 python3-venv
    say "making $venv"
    rm -rf "$venv"
    mkdir -p target
    python3 -m venv "$venv" || fail "python3 cannot make a virtual environment; is python3-venv installed?"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$wanted" ||
        fail "pip could not install what $wanted lists"
    cp "$wanted" "$venv/installed.txt"
fi

# The same for node.
modules=target/node
wanted=tests/programs/package-lock.json
if ! { cmp -s "$wanted" "$modules/installed.json" && [ -d "$modules/node_modules/node-easywechat" ]; }; then
    say "making $modules"
    rm -rf "$modules"
    mkdir -p "$modules"
    cp tests/programs/package.json "$wanted" "$modules"
    (cd "$modules" && npm ci --loglevel=error --ignore-scripts --no-audit --no-fund) ||
        fail "npm could not install what $wanted lists"
    cp "$wanted" "$modules/installed.json"
fi

# What follows may end in another program, which does not clean up.
[ -z "${policy-}" ] || { $as_root rm -f "$policy"; trap - EXIT; }

cargo test --locked "$@"
[ $# -eq 0 ] || exit 0
# Optimized, as the counted program is: without, so many requests would take several minutes.
say "200,000 requests of all kinds, to see whether anything stays behind"
cargo bench --locked --bench leaks
exec cargo bench --locked --bench instructions
