"""Configurations of nginx, HAProxy and wecom-proxy in the benchmark: each function writes a configuration and returns the
command that starts the program. `wecom` is the port of the WeCom stand-in. Logs are off unless a function enables them."""

import hashlib
import os
import pathlib
import shutil

LUA_MODULES = [pathlib.Path("/usr/lib/nginx/modules", f"{name}_module.so") for name in ("ndk_http", "ngx_http_lua")]
# A token of WeCom's length.
TOKEN = "a-token-of-two-hundred-and-fourteen-characters".ljust(214, "0")
KEY = "a-key-of-the-benchmark-0123456789abcdef"
USER = '{"errcode":0,"errmsg":"ok","userid":"zhangsan","name":"张三","department":[1,2],"position":"工程师","status":1}'
MB = 1 << 20


class Problem(Exception):
    """An error that ends the program with a message."""


def find(name):
    """The path of a program, or None. Also searches sbin, where Debian installs servers."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def program(name, package=None):
    """The path of a required program; its Debian package has the same name unless one is given."""
    found = find(name)
    if not found:
        raise Problem(f"{name} is missing: apt install {package or name}")
    return found


def nginx(directory, name, http, modules=()):
    """The command of an nginx with one worker, in a separate directory to isolate it from the system's nginx."""
    own = directory / name
    own.mkdir(exist_ok=True)
    temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    (own / "nginx.conf").write_text(
        "".join(f"load_module {module};\n" for module in modules)
        # As root it would switch to a user that cannot read the temporary directory.
        + ("user root;\n" if os.geteuid() == 0 else "")
        + f"daemon off; worker_processes 1; pid {own}/pid; error_log stderr error;\n"
        + "events { worker_connections 4096; }\nhttp {\n  access_log off; sendfile on; tcp_nopush on;\n"
        + "  keepalive_requests 1000000000; client_max_body_size 0;\n"
        + "".join(f"  {kind}_temp_path {own}/{kind};\n" for kind in temporary)
        + http
        + "\n}\n"
    )
    return [program("nginx"), "-p", own, "-e", "stderr", "-c", own / "nginx.conf"]


def stand_in(directory, port):
    """The WeCom stand-in: a request without the token gets 403, which fails the benchmark."""
    files = directory / "files" / "cgi-bin"
    for folder in ("user", "media"):
        (files / folder).mkdir(parents=True, exist_ok=True)
    person = '{"userid":"zhangsan","name":"张三","department":[1,2]}'
    people = ",".join([person] * (MB // len(person.encode()) + 1))
    (files / "user" / "list").write_text('{"errcode":0,"errmsg":"ok","userlist":[%s]}' % people, encoding="utf-8")
    (files / "media" / "get").write_bytes(os.urandom(MB) * 10)
    check_token = "if ($arg_access_token != '%s') { return 403; }" % TOKEN
    http = f"""
  default_type application/json;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {directory}/files;
    location = /cgi-bin/gettoken {{
      return 200 '{{"errcode":0,"errmsg":"ok","access_token":"{TOKEN}","expires_in":7200}}';
    }}
    location = /cgi-bin/user/get {{ {check_token} return 200 '{USER}'; }}
    location = /cgi-bin/message/send {{ {check_token} return 200 '{USER}'; }}
    location = /cgi-bin/user/list {{ {check_token} }}
    location = /cgi-bin/media/get {{ {check_token} default_type application/octet-stream; }}
    # Only a location with proxy_pass reads the whole body before it responds.
    location = /cgi-bin/media/upload {{
      {check_token}
      client_body_buffer_size 11m; proxy_pass_request_body off; proxy_set_header Content-Length "";
      proxy_pass http://unix:{directory}/uploaded;
    }}
  }}
  server {{ listen unix:{directory}/uploaded; location / {{ return 200 '{USER}'; }} }}"""
    return nginx(directory, "wecom", http)


def nginx_inject(directory, port, wecom, http2_port=None):
    """Removes /hr, adds the token, streams in both directions."""
    http2 = f"listen 127.0.0.1:{http2_port} http2 backlog=4096;" if http2_port else ""
    return nginx(directory, "nginx", f"""
  upstream wecom {{ server 127.0.0.1:{wecom}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096; {http2}
    location /hr/ {{
      set $args $args&access_token={TOKEN};
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header X-Api-Key "";
      proxy_request_buffering off; proxy_max_temp_file_size 0;
      proxy_pass http://wecom/;
    }}
  }}""")


def nginx_lua(directory, port, wecom):
    """The full function: client key, shared token, errcode inspection, one retry. The retry needs both bodies in memory."""
    return nginx(directory, "nginx-lua", f"""
  lua_shared_dict tokens 1m;
  upstream wecom {{ server 127.0.0.1:{wecom}; keepalive 128; keepalive_requests 1000000000; }}
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header X-Api-Key "";
  client_body_buffer_size 11m;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location /gettoken {{
      internal; proxy_pass_request_body off; proxy_set_header Content-Length "";
      proxy_pass http://wecom/cgi-bin/gettoken?corpid=ww1&corpsecret=a-secret;
    }}
    location /wecom/ {{ internal; proxy_pass http://wecom/; }}
    location /hr/ {{
      content_by_lua_block {{
        if ngx.var.http_x_api_key ~= "{KEY}" then return ngx.exit(401) end
        local tokens = ngx.shared.tokens
        local function current(refused)
          local waited = 0
          while true do
            local token = tokens:get("hr")
            if token and token ~= refused then return token end
            if tokens:add("fetching", true, 10) then
              local body = ngx.location.capture("/gettoken").body
              token = body:match('"access_token":"([^"]+)"')
              if token then tokens:set("hr", token, 6900) end
              tokens:delete("fetching")
              return token
            end
            ngx.sleep(0.01)
            waited = waited + 1
            if waited > 500 then return nil end
          end
        end
        ngx.req.read_body()
        local path, args = "/wecom" .. ngx.var.uri:sub(4), ngx.var.args .. "&access_token="
        local method, refused, response = ngx["HTTP_" .. ngx.req.get_method()], nil, nil
        for attempt = 1, 2 do
          local token = current(refused)
          if not token then return ngx.exit(502) end
          response = ngx.location.capture(path, {{ method = method, args = args .. token, always_forward_body = true }})
          local json = (response.header["Content-Type"] or ""):find("json", 1, true)
          local errcode = json and response.body:match('"errcode"%s*:%s*(%d+)')
          if errcode ~= "40014" and errcode ~= "42001" then break end
          refused = token
        end
        ngx.status = response.status
        ngx.header["Content-Type"] = response.header["Content-Type"]
        ngx.header["Content-Length"] = #response.body
        ngx.print(response.body)
      }}
    }}
  }}""", LUA_MODULES)


def haproxy(directory, port, wecom):
    """Removes /hr and adds the token."""
    path = directory / "haproxy.cfg"
    path.write_text(f"""
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 75s
  timeout server 60s
frontend clients
  bind 127.0.0.1:{port} backlog 4096
  http-request set-path %[path,bytes(3)]
  http-request set-query %[query]&access_token={TOKEN}
  http-request del-header X-Api-Key
  default_backend wecom
backend wecom
  http-reuse always
  server wecom 127.0.0.1:{wecom}
""")
    return [program("haproxy"), "-db", "-f", path]


def pingora(binary):
    """Removes /hr and adds the token."""
    return lambda _, port, wecom: [binary, str(port), str(wecom), TOKEN]


def wecom_proxy(binary, access):
    """The defaults, a client with a key, and the access log on or off."""
    def command(directory, port, wecom):
        path = directory / f"proxy-{access}.toml"
        path.write_text(f"""
[server]
listen = "127.0.0.1:{port}"
[upstream]
url = "http://127.0.0.1:{wecom}"
[log]
access = {access}
[agents.hr]
corpid = "ww1"
secret = "a-secret"
[clients.bench]
key_sha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"
agents = ["hr"]
""")
        return [binary, "serve", "--config", path]
    return command
