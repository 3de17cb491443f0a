"""HTTPS with basic authentication in front of a registry: proxy.py CERTIFICATE KEY USER:PASSWORD PORT. Prints its port."""

import base64
import http.client
import http.server
import ssl
import sys

certificate, key, login, port = sys.argv[1:]
wanted = "Basic " + base64.b64encode(login.encode()).decode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != wanted:
            return self.answer(401, b'{"error_code":401,"message":"Unauthorized"}')
        upstream = http.client.HTTPConnection("127.0.0.1", int(port))
        headers = {name: self.headers[name] for name in ("Content-Type", "Accept") if name in self.headers}
        upstream.request(self.command, self.path, body, headers)
        got = upstream.getresponse()
        self.answer(got.status, got.read())

    do_GET = do_POST = do_PUT = do_DELETE = forward

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
