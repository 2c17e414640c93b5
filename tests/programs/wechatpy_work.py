"""Uses wechatpy through the proxy: people, departments, tags, messages, files. KEY replaces the secret.

    wechatpy_work.py base  CORPID KEY CONTROL URL         the base URL is the proxy's, with an agent's prefix or without
    wechatpy_work.py fixed CORPID KEY CONTROL HOST:PORT   the host stays qyapi.weixin.qq.com and resolves to the proxy

wechatpy itself is not changed. `base` derives a class, as users do: it sets API_BASE_URL and overrides the method that
contains the address of gettoken. media.download and media.get_url cannot be redirected this way; `fixed` calls them. CONTROL
is the simulator's control address, through which the token is revoked repeatedly.
"""

import io
import os
import socket
import sys

import requests
from wechatpy.enterprise import WeChatClient

mode, corpid, key, control, proxy = sys.argv[1:]
content = os.urandom(300 * 1024)


class ThroughProxy(WeChatClient):
    API_BASE_URL = f"{proxy}/cgi-bin/"

    def fetch_access_token(self):
        params = {"corpid": self.corp_id, "corpsecret": self.secret}
        return self._fetch_access_token(url=f"{self.API_BASE_URL}gettoken", params=params)


if mode == "fixed":
    # Redirects like a line in /etc/hosts, and also the port, because only root may listen on 443.
    host, port = proxy.rsplit(":", 1)
    resolve = socket.getaddrinfo

    def getaddrinfo(name, service, *rest, **more):
        if name == "qyapi.weixin.qq.com":
            name, service = host, port
        return resolve(name, service, *rest, **more)

    socket.getaddrinfo = getaddrinfo

# Without automatic retry: the proxy must hide a refused token from it.
client = {"base": ThroughProxy, "fixed": WeChatClient}[mode](corpid, key, auto_retry=False)


def invalidate_token(kind):
    requests.post(f"{control}/control/{kind}?agent=hr", timeout=20).raise_for_status()


def download(media_id):
    if mode == "fixed":
        return client.media.download(media_id).content
    return client.get("media/get", params={"media_id": media_id}).content


assert client.user.get("zhangsan")["name"] == "张三"
invalidate_token("revoke")
assert len(client.department.get()) == 4
department = client.department.create("质量部")["id"]
invalidate_token("expire")
client.department.update(department, name="测试部")
assert [known["name"] for known in client.department.get(department)] == ["测试部"]

client.user.create("qianqi", "钱七", department=[department], mobile="13900000000")
invalidate_token("revoke")
client.user.update("qianqi", position="测试工程师")
assert client.user.get("qianqi")["position"] == "测试工程师"
assert [user["userid"] for user in client.user.list(department)] == ["qianqi"]

tag = client.tag.create("外勤")["tagid"]
invalidate_token("expire")
client.tag.add_users(tag, ["qianqi", "lisi"])
assert {user["userid"] for user in client.tag.get_users(tag)["userlist"]} == {"qianqi", "lisi"}
client.tag.delete_users(tag, ["lisi"])
client.tag.delete(tag)
assert tag not in [known["tagid"] for known in client.tag.list()]

client.message.send_text(1000002, ["zhangsan", "lisi"], "你好，世界 😀")
invalidate_token("revoke")
client.message.send_markdown(1000002, "zhangsan", "**上线**")

uploaded = client.media.upload("file", ("报告.bin", io.BytesIO(content)))
assert download(uploaded["media_id"]) == content
invalidate_token("revoke")
assert download(uploaded["media_id"]) == content
invalidate_token("expire")
again = client.media.upload("file", ("报告.bin", io.BytesIO(content)))
client.message.send_file(1000002, "zhangsan", again["media_id"])

client.user.delete("qianqi")
client.department.delete(department)
assert client.jsapi.get_jsapi_ticket()
print("wechatpy: fine")
