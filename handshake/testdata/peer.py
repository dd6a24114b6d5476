# A peer of the tests. It shares no code with what it talks to. It does what the
# lines on its standard input say, secrets in hex, and tells on standard output.
#
#   listen SECRET            multiprocessing.connection.Listener
#   dial PORT SECRET         multiprocessing.connection.Client
#   classic-listen DIGEST SECRET
#   classic-dial PORT DIGEST SECRET
import binascii
import hmac
import multiprocessing
import multiprocessing.connection as mp
import random
import socket
import string
import sys


def say(*words):
    print(*words)
    sys.stdout.flush()


def talk(conn):
    conn.send_bytes(b"hello " + conn.recv_bytes())
    conn.close()
    say("ok")


def listen(secret):
    with mp.Listener(("127.0.0.1", 0), authkey=secret) as listener:
        say("port", listener.address[1])
        try:
            talk(listener.accept())
        except (multiprocessing.AuthenticationError, EOFError, OSError) as e:
            say("refused", type(e).__name__)


def dial(port, secret):
    try:
        talk(mp.Client(("127.0.0.1", int(port)), authkey=secret))
    except (multiprocessing.AuthenticationError, EOFError, OSError) as e:
        say("refused", type(e).__name__)


def classic_talk(conn):
    conn.settimeout(10)
    got = conn.recv(100)
    if not got:
        say("refused")
        return
    conn.sendall(b"hello " + got)
    say("ok")


def classic_listen(digest, secret):
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(1)
    say("port", server.getsockname()[1])
    conn, _ = server.accept()
    challenge = "".join(random.choice(string.digits + string.ascii_letters) for _ in range(16)).encode()
    conn.sendall(challenge)
    want = hmac.new(secret, challenge, digest).digest()
    got = b""
    while len(got) < len(want):
        part = conn.recv(len(want) - len(got))
        if not part:
            break
        got += part
    if hmac.compare_digest(got, want):
        classic_talk(conn)
    else:
        say("refused")
    conn.close()
    server.close()


def classic_dial(port, digest, secret):
    conn = socket.create_connection(("127.0.0.1", int(port)), timeout=10)
    challenge = b""
    while len(challenge) < 16:
        challenge += conn.recv(16 - len(challenge))
    conn.sendall(hmac.new(secret, challenge, digest).digest())
    try:
        classic_talk(conn)
    except OSError:
        say("refused")
    conn.close()


say("python", *sys.version_info[:2])
for line in sys.stdin:
    words = line.split()
    words[-1] = binascii.unhexlify(words[-1])
    {"listen": listen, "dial": dial, "classic-listen": classic_listen, "classic-dial": classic_dial}[words[0]](*words[1:])
