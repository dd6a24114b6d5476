"""A client and a server of channel-bound tokens that share no code with Limpet.

It uses Python's standard library, and OpenSSL by way of ctypes: Python's ssl
does not export keying material. What it does is on standard input, as JSON; it
writes a line of JSON for each answer.
"""

import base64
import ctypes
import hashlib
import hmac
import json
import secrets
import socket
import sys
import time

ssl = ctypes.CDLL("libssl.so.3")
crypto = ctypes.CDLL("libcrypto.so.3")

P, I, L, S = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_size_t
B, U64 = ctypes.c_char_p, ctypes.c_uint64


def declare(lib, name, result, *arguments):
    f = getattr(lib, name)
    f.restype, f.argtypes = result, list(arguments)


for declaration in [
    ("TLS_method", P), ("SSL_CTX_new", P, P), ("SSL_new", P, P), ("SSL_set_fd", I, P, I),
    ("SSL_connect", I, P), ("SSL_accept", I, P), ("SSL_read", I, P, P, I), ("SSL_write", I, P, B, I),
    ("SSL_shutdown", I, P), ("SSL_free", None, P), ("SSL_CTX_ctrl", L, P, I, L, P), ("SSL_ctrl", L, P, I, L, B),
    ("SSL_CTX_set_options", U64, P, U64), ("SSL_CTX_load_verify_locations", I, P, B, B),
    ("SSL_CTX_set_verify", None, P, I, P), ("SSL_set1_host", I, P, B), ("SSL_get_error", I, P, I),
    ("SSL_CTX_use_certificate_chain_file", I, P, B), ("SSL_CTX_use_PrivateKey_file", I, P, B, I),
    ("SSL_export_keying_material", I, P, P, S, B, S, B, S, I), ("SSL_get_version", B, P),
]:
    declare(ssl, *declaration)
for declaration in [
    ("EVP_CIPHER_CTX_new", P), ("EVP_CIPHER_CTX_free", None, P), ("EVP_aes_256_gcm", P),
    ("EVP_EncryptInit_ex", I, P, P, P, B, B), ("EVP_EncryptUpdate", I, P, P, P, B, I), ("EVP_EncryptFinal_ex", I, P, P, P),
    ("EVP_DecryptInit_ex", I, P, P, P, B, B), ("EVP_DecryptUpdate", I, P, P, P, B, I), ("EVP_DecryptFinal_ex", I, P, P, P),
    ("EVP_CIPHER_CTX_ctrl", I, P, I, I, P), ("BIO_new_mem_buf", P, B, I), ("PEM_read_bio_PrivateKey", P, P, P, P, P),
    ("PEM_read_bio_PUBKEY", P, P, P, P, P), ("EVP_MD_CTX_new", P), ("EVP_sha256", P),
    ("EVP_DigestSignInit", I, P, P, P, P, P), ("EVP_DigestSign", I, P, P, P, B, S),
    ("EVP_DigestVerifyInit", I, P, P, P, P, P), ("EVP_DigestVerify", I, P, B, S, B, S),
    ("i2d_PUBKEY", I, P, P), ("ERR_error_string", B, ctypes.c_ulong, P), ("ERR_get_error", ctypes.c_ulong),
]:
    declare(crypto, *declaration)


def check(ok, what):
    if ok != 1:
        raise RuntimeError(what + ": " + crypto.ERR_error_string(crypto.ERR_get_error(), None).decode())


def b64url(b):
    return base64.urlsafe_b64encode(b).rstrip(b"=").decode()


def unb64url(s):
    return base64.urlsafe_b64decode(s + "=" * (-len(s) % 4))


def mac(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()


class Connection:
    """One TLS connection, with its exporter."""

    def __init__(self, context, sock, server, name=None):
        self.sock, self.s, self.rest = sock, ssl.SSL_new(context), b""
        check(ssl.SSL_set_fd(self.s, sock.fileno()), "SSL_set_fd")
        if server:
            check(ssl.SSL_accept(self.s), "SSL_accept")
            return
        check(ssl.SSL_set1_host(self.s, name.encode()), "SSL_set1_host")
        ssl.SSL_ctrl(self.s, 55, 0, name.encode())  # SSL_CTRL_SET_TLSEXT_HOSTNAME
        check(ssl.SSL_connect(self.s), "SSL_connect")

    def export(self, label, context, size=32):
        out = ctypes.create_string_buffer(size)
        has = context is not None
        check(ssl.SSL_export_keying_material(self.s, out, size, label, len(label), context or b"", len(context or b""), int(has)),
              "SSL_export_keying_material")
        return out.raw

    def version(self):
        return ssl.SSL_get_version(self.s).decode()

    def write(self, data):
        if ssl.SSL_write(self.s, data, len(data)) != len(data):
            raise RuntimeError("SSL_write")

    def fill(self):
        buf = ctypes.create_string_buffer(16384)
        n = ssl.SSL_read(self.s, buf, len(buf))
        if n <= 0:
            return False
        self.rest += buf.raw[:n]
        return True

    def message(self):
        """Reads a message of HTTP/1.1: its first line, fields and body."""
        while b"\r\n\r\n" not in self.rest:
            if not self.fill():
                return None
        head, self.rest = self.rest.split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        fields = {}
        for line in lines[1:]:
            name, value = line.split(":", 1)
            fields.setdefault(name.lower(), []).append(value.strip())
        size = int(fields.get("content-length", ["0"])[0])
        while len(self.rest) < size:
            if not self.fill():
                raise RuntimeError("the body is cut")
        body, self.rest = self.rest[:size], self.rest[size:]
        return lines[0], fields, body

    def close(self):
        ssl.SSL_shutdown(self.s)
        ssl.SSL_free(self.s)
        self.sock.close()


def tls(task):
    context = ssl.SSL_CTX_new(ssl.TLS_method())
    if task.get("tls12"):
        ssl.SSL_CTX_ctrl(context, 124, 0x0303, None)  # SSL_CTRL_SET_MAX_PROTO_VERSION
    if task.get("no_ems"):
        ssl.SSL_CTX_set_options(context, 1)  # SSL_OP_NO_EXTENDED_MASTER_SECRET
    return context


# Limpet profile.

def context_of(algorithm, client, public, authority, form):
    fields = [b"limpet channel 1", algorithm, client.encode(), public, b"https", authority.encode(), form.encode()]
    return b"".join(len(f).to_bytes(2, "big") + f for f in fields)


class Secrets:
    def __init__(self, conn, task, client, secret, authority):
        exported = conn.export(b"EXPORTER-limpet-channel", context_of(b"hmac-sha256", client, b"", authority, task["form"]))
        root = mac(secret, b"limpet channel secret 1\0" + exported)
        self.tag, self.jwt, self.jwe, self.request = (mac(root, b"limpet channel " + what + b" 1\0") for what in (b"token", b"jwt", b"jwe", b"request"))


def key_id(client):
    return b64url(hashlib.sha256(b"limpet channel client 1\0" + client.encode()).digest())


def jws(header, claims, sign):
    signed = b64url(json.dumps(header).encode()) + "." + b64url(json.dumps(claims).encode())
    return signed + "." + b64url(sign(signed.encode()))


def claims_of(client, authority):
    now = int(time.time())
    return {"iss": client, "sub": client, "aud": "https://" + authority, "iat": now, "nbf": now, "exp": now + 300, "jti": secrets.token_hex(16)}


def encrypt(key, header, text):
    protected, iv = b64url(json.dumps(header).encode()), secrets.token_bytes(12)
    c, n = crypto.EVP_CIPHER_CTX_new(), ctypes.c_int()
    out, tag = ctypes.create_string_buffer(len(text) + 16), ctypes.create_string_buffer(16)
    check(crypto.EVP_EncryptInit_ex(c, crypto.EVP_aes_256_gcm(), None, key, iv), "EVP_EncryptInit_ex")
    check(crypto.EVP_EncryptUpdate(c, None, ctypes.byref(n), protected.encode(), len(protected)), "EVP_EncryptUpdate")
    check(crypto.EVP_EncryptUpdate(c, out, ctypes.byref(n), text, len(text)), "EVP_EncryptUpdate")
    size = n.value
    check(crypto.EVP_EncryptFinal_ex(c, out, ctypes.byref(n)), "EVP_EncryptFinal_ex")
    check(crypto.EVP_CIPHER_CTX_ctrl(c, 0x10, 16, tag), "EVP_CTRL_AEAD_GET_TAG")
    crypto.EVP_CIPHER_CTX_free(c)
    return ".".join([protected, "", b64url(iv), b64url(out.raw[:size]), b64url(tag.raw)])


def decrypt(key, token):
    protected, wrapped, iv, text, tag = token.split(".")
    if wrapped:
        raise ValueError("an encrypted key")
    text = unb64url(text)
    c, n = crypto.EVP_CIPHER_CTX_new(), ctypes.c_int()
    out = ctypes.create_string_buffer(len(text) + 16)
    check(crypto.EVP_DecryptInit_ex(c, crypto.EVP_aes_256_gcm(), None, key, unb64url(iv)), "EVP_DecryptInit_ex")
    check(crypto.EVP_DecryptUpdate(c, None, ctypes.byref(n), protected.encode(), len(protected)), "EVP_DecryptUpdate")
    check(crypto.EVP_DecryptUpdate(c, out, ctypes.byref(n), text, len(text)), "EVP_DecryptUpdate")
    size = n.value
    check(crypto.EVP_CIPHER_CTX_ctrl(c, 0x11, 16, ctypes.create_string_buffer(unb64url(tag), 16)), "EVP_CTRL_AEAD_SET_TAG")
    check(crypto.EVP_DecryptFinal_ex(c, out, ctypes.byref(n)), "EVP_DecryptFinal_ex")
    crypto.EVP_CIPHER_CTX_free(c)
    return json.loads(unb64url(protected)), out.raw[:size].decode()


# ECDSA on P-256.

def private_key(pem):
    return crypto.PEM_read_bio_PrivateKey(crypto.BIO_new_mem_buf(pem.encode(), -1), None, None, None)


def public_key(pem):
    return crypto.PEM_read_bio_PUBKEY(crypto.BIO_new_mem_buf(pem.encode(), -1), None, None, None)


def point(key):
    size = crypto.i2d_PUBKEY(key, None)
    out = ctypes.create_string_buffer(size)
    at = ctypes.c_void_p(ctypes.addressof(out))
    crypto.i2d_PUBKEY(key, ctypes.byref(at))
    return out.raw[-65:]


def integer(b):
    b = b.lstrip(b"\0") or b"\0"
    if b[0] & 0x80:
        b = b"\0" + b
    return b"\x02" + bytes([len(b)]) + b


def sign(key, message):
    c, size = crypto.EVP_MD_CTX_new(), ctypes.c_size_t(128)
    out = ctypes.create_string_buffer(128)
    check(crypto.EVP_DigestSignInit(c, None, crypto.EVP_sha256(), None, key), "EVP_DigestSignInit")
    check(crypto.EVP_DigestSign(c, out, ctypes.byref(size), message, len(message)), "EVP_DigestSign")
    der = out.raw[:size.value]
    r = der[4:4 + der[3]]
    s = der[4 + der[3] + 2:]
    return r.lstrip(b"\0").rjust(32, b"\0") + s.lstrip(b"\0").rjust(32, b"\0")


def verifies(key, message, signature):
    body = integer(signature[:32]) + integer(signature[32:])
    der = b"\x30" + bytes([len(body)]) + body
    c = crypto.EVP_MD_CTX_new()
    check(crypto.EVP_DigestVerifyInit(c, None, crypto.EVP_sha256(), None, key), "EVP_DigestVerifyInit")
    return len(signature) == 64 and crypto.EVP_DigestVerify(c, der, len(der), message, len(message)) == 1


def pair_export(conn, task, client, key, authority):
    return conn.export(b"EXPORTER-limpet-channel", context_of(b"ecdsa-p256", client, point(key), authority, task["form"]))


def statement(exported):
    return b" " * 64 + b"Limpet channel token 1\0" + exported


def exported_claim(exported):
    return b64url(hashlib.sha256(b"limpet channel claim 1\0" + exported).digest())


# Sample profile.

def sample_token(conn, client, secret):
    return mac(secret, bytes(4) + conn.export(b"EXPORTER-my_label", client.encode()) + b"\0\0\1\0")


def sample_key(conn, secret, use):
    return mac(secret, conn.export(b"EXPORTER-Channel-Binding", use))


# RFC 9421.

def base_of(components, parameters, values):
    lines = ['"%s": %s' % (name, values[name]) for name in components]
    return "\n".join(lines + ['"@signature-params": ' + parameters]).encode()


def values_of(method, authority, target, fields):
    path, _, query = target.partition("?")
    values = {"@method": method, "@authority": authority, "@path": path, "@query": "?" + query}
    values.update({name: value[0] for name, value in fields.items()})
    return values


def fields_of(conn, task, method, target, body):
    """What a request of the client carries."""
    client, authority, profile, form = task["id"], task["authority"], task["profile"], task["form"]
    if task.get("token"):
        return {"authorization": "Bearer " + task["token"]}
    if profile == "sample":
        secret = bytes.fromhex(task["secret"])
        if form == "token":
            return {"client": client, "apikey": base64.b64encode(sample_token(conn, client, secret)).decode()}
        inner = jws({"alg": "HS256"}, {"iss": "issuer", "sub": "subject"}, lambda b: mac(sample_key(conn, secret, b"sig_key"), b))
        if form == "jwt":
            return {"authorization": "Bearer " + inner}
        header = {"alg": "dir", "cty": "JWT", "enc": "A256GCM", "kid": client, "typ": "JWT"}
        return {"authorization": "Bearer " + encrypt(sample_key(conn, secret, b"enc_key"), header, inner.encode())}
    typ = "limpet-channel+jwt"
    if task.get("key"):
        key = private_key(task["key"])
        exported = pair_export(conn, task, client, key, authority)
        if form == "token":
            return {"authorization": "Bearer limpet1." + b64url(client.encode()) + "." + b64url(sign(key, statement(exported)))}
        claims = dict(claims_of(client, authority), limpet_exporter=exported_claim(exported))
        return {"authorization": "Bearer " + jws({"alg": "ES256", "kid": client, "typ": typ}, claims, lambda b: sign(key, b))}
    keys = Secrets(conn, task, client, bytes.fromhex(task["secret"]), authority)
    if form == "token":
        token = "limpet1." + b64url(client.encode()) + "." + b64url(keys.tag)
    else:
        token = jws({"alg": "HS256", "kid": client, "typ": typ}, claims_of(client, authority), lambda b: mac(keys.jwt, b))
    if form == "jwe":
        token = encrypt(keys.jwe, {"alg": "dir", "enc": "A256GCM", "kid": client, "typ": typ, "cty": "JWT"}, token.encode())
    fields = {"authorization": "Bearer " + token}
    if not task.get("macs"):
        return fields
    components = ["@method", "@authority", "@path", "@query"]
    if body:
        fields["content-digest"] = "sha-256=:" + base64.b64encode(hashlib.sha256(body).digest()).decode() + ":"
        components.append("content-digest")
    components.append("authorization")
    parameters = "(%s);created=%d;nonce=\"%s\";keyid=\"%s\";alg=\"hmac-sha256\";tag=\"limpet\"" % (
        " ".join('"%s"' % c for c in components), int(time.time()), secrets.token_hex(16), key_id(client))
    base = base_of(components, parameters, values_of(method, authority, target, {name: [value] for name, value in fields.items()}))
    fields["signature-input"] = "limpet=" + parameters
    fields["signature"] = "limpet=:" + base64.b64encode(mac(keys.request, base)).decode() + ":"
    return fields


def client(task):
    context = tls(task)
    check(ssl.SSL_CTX_load_verify_locations(context, task["ca"].encode(), None), "SSL_CTX_load_verify_locations")
    ssl.SSL_CTX_set_verify(context, 1, None)
    host, port = task["address"].rsplit(":", 1)
    conn = Connection(context, socket.create_connection((host, int(port))), False, "example.com")
    try:
        fingerprint = b64url(conn.export(b"EXPORTER-limpet-channel-fingerprint", None, 16))
        for request in task["requests"]:
            method, target, body = request["method"], request["target"], request.get("body", "").encode()
            fields = fields_of(conn, task, method, target, body)
            head = [method + " " + target + " HTTP/1.1", "host: " + task["authority"], "content-length: %d" % len(body)]
            head += [name + ": " + value for name, value in fields.items()]
            conn.write("\r\n".join(head + ["", ""]).encode() + body)
            line, answered, text = conn.message()
            print(json.dumps({"status": int(line.split()[1]), "body": text.decode(), "fields": fields, "version": conn.version(),
                              "fingerprint": fingerprint, "theirs": answered.get("limpet-channel", [""])[0]}), flush=True)
    finally:
        conn.close()


def admitted(conn, task, method, target, fields, body):
    """Whose request it is; an exception if nobody's."""
    authority, profile, form = fields["host"][0], task["profile"], task["form"]
    secret, client = bytes.fromhex(task.get("secret", "")), task["id"]

    def same(a, b):
        if not hmac.compare_digest(a, b):
            raise ValueError("another connection's or another key's")

    def verified(token, key):
        signed, _, signature = token.rpartition(".")
        same(mac(key, signed.encode()), unb64url(signature))
        header, claims = (json.loads(unb64url(part)) for part in signed.split("."))
        return header, claims

    if profile == "sample" and form == "token":
        same(base64.b64decode(fields["apikey"][0]), sample_token(conn, fields["client"][0], secret))
        return
    scheme, token = fields["authorization"][0].split(" ", 1)
    assert scheme == "Bearer" and len(fields["authorization"]) == 1
    if profile == "sample":
        if form == "jwe":
            header, token = decrypt(sample_key(conn, secret, b"enc_key"), token)
            assert header == {"alg": "dir", "cty": "JWT", "enc": "A256GCM", "kid": client, "typ": "JWT"}, header
        header, claims = verified(token, sample_key(conn, secret, b"sig_key"))
        assert header == {"alg": "HS256"} and claims == {"iss": "issuer", "sub": "subject"}, (header, claims)
        return

    def check_claims(claims):
        now = time.time()
        assert claims["iss"] == claims["sub"] == client and claims["aud"] in ("https://" + authority, ["https://" + authority]), claims
        assert claims["nbf"] - 30 <= now <= claims["exp"] + 30 and claims["iat"] <= now + 30 and len(claims["jti"]) >= 16, claims

    if task.get("public"):
        key = public_key(task["public"])
        exported = pair_export(conn, task, client, key, authority)
        if form == "token":
            prefix, name, signature = token.split(".")
            assert prefix == "limpet1" and unb64url(name) == client.encode()
            assert verifies(key, statement(exported), unb64url(signature))
            return
        signed, _, signature = token.rpartition(".")
        assert verifies(key, signed.encode(), unb64url(signature))
        header, claims = (json.loads(unb64url(part)) for part in signed.split("."))
        assert header == {"alg": "ES256", "kid": client, "typ": "limpet-channel+jwt"}, header
        assert claims["limpet_exporter"] == exported_claim(exported)
        check_claims(claims)
        return
    keys = Secrets(conn, task, client, secret, authority)
    if form == "token":
        prefix, name, tag = token.split(".")
        assert prefix == "limpet1" and unb64url(name) == client.encode()
        same(keys.tag, unb64url(tag))
    else:
        if form == "jwe":
            header, token = decrypt(keys.jwe, token)
            assert header == {"alg": "dir", "enc": "A256GCM", "kid": client, "typ": "limpet-channel+jwt", "cty": "JWT"}, header
        header, claims = verified(token, keys.jwt)
        assert header == {"alg": "HS256", "kid": client, "typ": "limpet-channel+jwt"}, header
        assert "limpet_exporter" not in claims
        check_claims(claims)
    if not task.get("macs"):
        return
    label, _, parameters = fields["signature-input"][0].partition("=")
    assert label == "limpet" and 'keyid="%s"' % key_id(client) in parameters
    components = [c.strip('"') for c in parameters[1:parameters.index(")")].split()]
    assert {"@method", "@authority", "@path", "@query", "authorization"} <= set(components)
    if body:
        assert "content-digest" in components
        assert fields["content-digest"][0] == "sha-256=:" + base64.b64encode(hashlib.sha256(body).digest()).decode() + ":"
    base = base_of(components, parameters, values_of(method, authority, target, fields))
    same(mac(keys.request, base), base64.b64decode(fields["signature"][0][len("limpet=:"):-1]))


def server(task):
    context = tls(task)
    check(ssl.SSL_CTX_use_certificate_chain_file(context, task["cert"].encode()), "certificate")
    check(ssl.SSL_CTX_use_PrivateKey_file(context, task["cert_key"].encode(), 1), "private key")
    listener = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    while True:
        sock, _ = listener.accept()
        try:
            conn = Connection(context, sock, True)
        except RuntimeError:
            continue
        while True:
            message = conn.message()
            if message is None:
                break
            line, fields, body = message
            method, target, _ = line.split()
            status, text, more = "200 OK", b"ok " + body, ""
            try:
                admitted(conn, task, method, target, fields, body)
            except Exception as e:  # all are told the same, and the test more
                print(json.dumps({"refused": repr(e)}), flush=True)
                status, text = "401 Unauthorized", b"refused"
                more = "Limpet-Channel: " + b64url(conn.export(b"EXPORTER-limpet-channel-fingerprint", None, 16)) + "\r\n"
            conn.write(("HTTP/1.1 %s\r\ncontent-length: %d\r\n%s\r\n" % (status, len(text), more)).encode() + text)
        conn.close()


if __name__ == "__main__":
    work = json.loads(sys.stdin.readline())
    {"client": client, "server": server}[work["role"]](work)
