#!/bin/sh
# All tests, and behind them the count of instructions. What they need beside Rust is installed where it is missing; nothing
# is skipped. Arguments go to cargo test, and then nothing is counted.
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
    $as_root apt-get update -qq || fail "apt-get update failed, so $* cannot be installed"
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        fail "apt-get could not install $*"
}

has cargo || fail "cargo is missing: install Rust as rust-toolchain.toml wants it (rustup does it by itself)"
has cc || install gcc libc6-dev
has curl || install curl
has bash || install bash
has kill || install procps
has openssl || install openssl
has valgrind || install valgrind
# Neither service is needed, only the programs.
has promtool || install prometheus
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
# What bench/run.py needs and compares with. Debian keeps servers where only root's PATH looks.
has wrk || install wrk
{ has nginx || [ -x /usr/sbin/nginx ]; } || install nginx
{ has haproxy || [ -x /usr/sbin/haproxy ]; } || install haproxy
[ -e /usr/lib/nginx/modules/ngx_http_lua_module.so ] || install libnginx-mod-http-lua

# The programs of the tests run in an environment of their own, made anew when what it holds has changed.
venv=target/venv
wanted=tests/requirements.txt
if ! { cmp -s "$wanted" "$venv/installed.txt" && "$venv/bin/python" -c 'import kubernetes_validate, requests, wechatpy' 2>/dev/null; }; then
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

cargo test --locked "$@"
[ $# -gt 0 ] || exec cargo bench --locked --bench instructions
