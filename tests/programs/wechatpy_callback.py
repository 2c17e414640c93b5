"""A receiver of callbacks as wechatpy's documentation has it: it verifies and decrypts, and replies encrypted.

    wechatpy_callback.py TOKEN AES_KEY RECEIVE_ID

Prints its port, and then one line of JSON for each message.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

from wechatpy.enterprise import parse_message
from wechatpy.enterprise.crypto import WeChatCrypto

crypto = WeChatCrypto(*sys.argv[1:4])


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        body = self.rfile.read(int(self.headers["content-length"]))
        signature, timestamp, nonce = query["msg_signature"], query["timestamp"], query["nonce"]
        xml = crypto.decrypt_message(body, signature, timestamp, nonce)
        message = parse_message(xml)
        print(json.dumps({"type": message.type, "source": message.source, "xml": xml}), flush=True)
        reply = crypto.encrypt_message("<xml><Content>reply</Content></xml>", nonce, timestamp).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_port, flush=True)
server.serve_forever()
