"""A web app that knows nothing of Limpet: a login form, a cookie, a page.

    python3 app.py PORT

It prints the port that it listens on, a free one for PORT 0. The session's
cookie is replaced at POST /renew. POST /token hands out the session as a bearer
token. GET /seen tells which requests there were. As in many an app, GET does not
read a body, and nothing reads chunks.
"""

import http.cookies
import http.server
import json
import secrets
import sys
import urllib.parse

USERS = {"alice": "correct horse", "bob": "battery staple"}
SESSIONS = {}
SEEN = []  # method, target and user of each request


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def user(self):
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer":
            return SESSIONS.get(token)
        cookie = http.cookies.SimpleCookie(self.headers.get("Cookie", ""))
        return SESSIONS.get(cookie["sid"].value) if "sid" in cookie else None

    def answer(self, status, text, *headers):
        body = text.encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin(self, user):
        sid = secrets.token_urlsafe(24)
        SESSIONS[sid] = user
        return ("Set-Cookie", "sid=%s; Path=/; HttpOnly" % sid)

    def do_GET(self):
        SEEN.append([self.command, self.path, self.user()])
        if self.path == "/seen":
            self.answer(200, json.dumps(SEEN))
        elif self.path == "/me" and self.user():
            self.answer(200, json.dumps({"user": self.user(), "told": self.headers.get("Remote-User"), "level": self.headers.get("Limpet-Level")}))
        elif self.path == "/me":
            self.answer(302, "", ("Location", "/login"))
        else:
            self.answer(200, "<form method=post action=/login><input name=username><input name=password></form>")

    do_DELETE = do_OPTIONS = do_GET

    def do_POST(self):
        SEEN.append([self.command, self.path, self.user()])
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        form = dict(urllib.parse.parse_qsl(body))
        user = form.get("username")
        if self.path == "/login" and user in USERS and USERS[user] == form.get("password"):
            self.answer(302, "", ("Location", "/me"), self.begin(user))
        elif self.path == "/login":
            self.answer(200, "wrong name or password")
        elif self.path == "/token" and user in USERS and USERS[user] == form.get("password"):
            token = secrets.token_urlsafe(24)
            SESSIONS[token] = user
            self.answer(200, json.dumps({"access_token": token}), ("Content-Type", "application/json"))
        elif self.path == "/renew" and self.user():
            self.answer(200, "", self.begin(self.user()))
        elif self.path == "/logout":
            self.answer(200, "", ("Set-Cookie", "sid=; Path=/; Max-Age=0"))  # SESSIONS is left as it is
        else:
            self.answer(403, "")

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    http.server.ThreadingHTTPServer.request_queue_size = 1024  # else 5 connections wait
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), App)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # who goes away is none
    print(server.server_address[1], flush=True)
    server.serve_forever()
