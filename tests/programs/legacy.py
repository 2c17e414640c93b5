"""A script as it was before the proxy: requests, one session, no access_token. BASE and KEY come by argument."""

import os
import sys

import requests

base, key = sys.argv[1:]
session = requests.Session()
session.headers["X-Api-Key"] = key


def good(answer):
    answer.raise_for_status()
    data = answer.json()
    assert data["errcode"] == 0, data
    return data


# Reading.
for _ in range(3):
    user = good(session.get(f"{base}/cgi-bin/user/get", params={"userid": "zhangsan"}))
    assert user["userid"] == "zhangsan", user
departments = good(session.get(f"{base}/cgi-bin/department/list"))
assert departments["department"], departments

# A message, with words that JSON escapes and with words that it does not.
for text in ("hello", "你好，世界 😀 \" \\ \n"):
    message = {"touser": "zhangsan", "msgtype": "text", "agentid": 1000002, "text": {"content": text}}
    sent = good(session.post(f"{base}/cgi-bin/message/send", json=message))
    assert sent["msgid"], sent

# A file there and back.
content = os.urandom(3 * 1024 * 1024 + 17)
files = {"media": ("报告.bin", content, "application/octet-stream")}
uploaded = good(session.post(f"{base}/cgi-bin/media/upload", params={"type": "file"}, files=files))
media = {"media_id": uploaded["media_id"]}
whole = session.get(f"{base}/cgi-bin/media/get", params=media)
assert whole.status_code == 200 and whole.content == content, whole.headers
part = session.get(f"{base}/cgi-bin/media/get", params=media, headers={"Range": "bytes=100-299"})
assert part.status_code == 206 and part.content == content[100:300], part.headers

# A generator goes out chunked.
pieces = (b'{"touser":"zhangsan","msgtype":"text","agentid":1000002,', b'"text":{"content":"chunked"}}')
sent = session.post(
    f"{base}/cgi-bin/message/send", data=iter(pieces), headers={"Content-Type": "application/json"}
)
good(sent)

# What the proxy itself refuses is JSON in the same shape.
refused = requests.get(f"{base}/cgi-bin/user/get", params={"userid": "zhangsan"})
assert refused.status_code == 401 and refused.json()["errcode"] == 40001, refused.text
print("legacy: fine")
