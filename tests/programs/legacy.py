"""A script that uses requests without an access_token. Arguments: BASE KEY."""

import os
import sys

import requests

base, key = sys.argv[1:]
session = requests.Session()
session.headers["X-Api-Key"] = key


def assert_ok(response):
    response.raise_for_status()
    data = response.json()
    assert data["errcode"] == 0, data
    return data


# Reading.
for _ in range(3):
    user = assert_ok(session.get(f"{base}/cgi-bin/user/get", params={"userid": "zhangsan"}))
    assert user["userid"] == "zhangsan", user
departments = assert_ok(session.get(f"{base}/cgi-bin/department/list"))
assert departments["department"], departments

# Messages with and without characters that JSON escapes.
for text in ("hello", "你好，世界 😀 \" \\ \n"):
    message = {"touser": "zhangsan", "msgtype": "text", "agentid": 1000002, "text": {"content": text}}
    sent = assert_ok(session.post(f"{base}/cgi-bin/message/send", json=message))
    assert sent["msgid"], sent

# Upload and download of a file.
content = os.urandom(3 * 1024 * 1024 + 17)
files = {"media": ("报告.bin", content, "application/octet-stream")}
uploaded = assert_ok(session.post(f"{base}/cgi-bin/media/upload", params={"type": "file"}, files=files))
media = {"media_id": uploaded["media_id"]}
whole = session.get(f"{base}/cgi-bin/media/get", params=media)
assert whole.status_code == 200 and whole.content == content, whole.headers
part = session.get(f"{base}/cgi-bin/media/get", params=media, headers={"Range": "bytes=100-299"})
assert part.status_code == 206 and part.content == content[100:300], part.headers

# requests sends a generator with chunked coding.
chunks = (b'{"touser":"zhangsan","msgtype":"text","agentid":1000002,', b'"text":{"content":"chunked"}}')
sent = session.post(
    f"{base}/cgi-bin/message/send", data=iter(chunks), headers={"Content-Type": "application/json"}
)
assert_ok(sent)

# An error of the proxy itself is JSON in WeCom's format.
refused = requests.get(f"{base}/cgi-bin/user/get", params={"userid": "zhangsan"})
assert refused.status_code == 401 and refused.json()["errcode"] == 40001, refused.text
print("legacy: fine")
