"""What nginx, HAProxy and wecom-proxy are told in the benchmark: each function writes a configuration and returns the
command that starts it. `wecom` is the port of the stand-in for WeCom. None of them logs unless it says so."""

import hashlib
import os
import pathlib
import shutil

LUA_MODULES = [pathlib.Path("/usr/lib/nginx/modules", f"{name}_module.so") for name in ("ndk_http", "ngx_http_lua")]
# As long as WeCom's.
TOKEN = "a-token-of-two-hundred-and-fourteen-characters".ljust(214, "0")
KEY = "a-key-of-the-benchmark-0123456789abcdef"
USER = '{"errcode":0,"errmsg":"ok","userid":"zhangsan","name":"张三","department":[1,2],"position":"工程师","status":1}'
MB = 1 << 20


class Problem(Exception):
    """Ends the program with a message for its user."""


def find(name):
    """Where a program is, if it is there. Debian keeps servers where only root's PATH looks."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def program(name):
    """The same for a program that must be there; its Debian package has its name."""
    found = find(name)
    if not found:
        raise Problem(f"{name} is missing: apt install {name}")
    return found


def nginx(directory, name, http, modules=()):
    """The command of an nginx with one worker; its own directory keeps it away from the system's nginx."""
    own = directory / name
    own.mkdir(exist_ok=True)
    temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    (own / "nginx.conf").write_text(
        "".join(f"load_module {module};\n" for module in modules)
        # As root it would change to a user who cannot read the temporary directory.
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
    """WeCom, as far as it matters here: whoever comes without the token gets 403, which ends the benchmark."""
    files = directory / "files" / "cgi-bin"
    for folder in ("user", "media"):
        (files / folder).mkdir(parents=True, exist_ok=True)
    person = '{"userid":"zhangsan","name":"张三","department":[1,2]}'
    people = ",".join([person] * (MB // len(person.encode()) + 1))
    (files / "user" / "list").write_text('{"errcode":0,"errmsg":"ok","userlist":[%s]}' % people, encoding="utf-8")
    (files / "media" / "get").write_bytes(os.urandom(MB) * 10)
    known = "if ($arg_access_token != '%s') { return 403; }" % TOKEN
    http = f"""
  default_type application/json;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {directory}/files;
    location = /cgi-bin/gettoken {{
      return 200 '{{"errcode":0,"errmsg":"ok","access_token":"{TOKEN}","expires_in":7200}}';
    }}
    location = /cgi-bin/user/get {{ {known} return 200 '{USER}'; }}
    location = /cgi-bin/message/send {{ {known} return 200 '{USER}'; }}
    location = /cgi-bin/user/list {{ {known} }}
    location = /cgi-bin/media/get {{ {known} default_type application/octet-stream; }}
    # Only a location that passes requests on takes the whole body before it answers.
    location = /cgi-bin/media/upload {{
      {known}
      client_body_buffer_size 11m; proxy_pass_request_body off; proxy_set_header Content-Length "";
      proxy_pass http://unix:{directory}/uploaded;
    }}
  }}
  server {{ listen unix:{directory}/uploaded; location / {{ return 200 '{USER}'; }} }}"""
    return nginx(directory, "wecom", http)


def nginx_inject(directory, port, wecom):
    """Cuts /hr, adds the token, streams in both directions."""
    return nginx(directory, "nginx", f"""
  upstream wecom {{ server 127.0.0.1:{wecom}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location /hr/ {{
      set $args $args&access_token={TOKEN};
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header X-Api-Key "";
      proxy_request_buffering off; proxy_max_temp_file_size 0;
      proxy_pass http://wecom/;
    }}
  }}""")


def nginx_lua(directory, port, wecom):
    """The whole job: a key, one gettoken for all, errcode looked at, one retry. The retry needs both bodies in memory."""
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
        local method, refused, answer = ngx["HTTP_" .. ngx.req.get_method()], nil, nil
        for attempt = 1, 2 do
          local token = current(refused)
          if not token then return ngx.exit(502) end
          answer = ngx.location.capture(path, {{ method = method, args = args .. token, always_forward_body = true }})
          local json = (answer.header["Content-Type"] or ""):find("json", 1, true)
          local errcode = json and answer.body:match('"errcode"%s*:%s*(%d+)')
          if errcode ~= "40014" and errcode ~= "42001" then break end
          refused = token
        end
        ngx.status = answer.status
        ngx.header["Content-Type"] = answer.header["Content-Type"]
        ngx.header["Content-Length"] = #answer.body
        ngx.print(answer.body)
      }}
    }}
  }}""", LUA_MODULES)


def haproxy(directory, port, wecom):
    """Cuts /hr and adds the token."""
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


def wecom_proxy(binary, access):
    """Its defaults, a client with a key, and the access log off or on."""
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
