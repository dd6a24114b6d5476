"""A host that shares no code with the token: python3-fido2 over a datagram socket.

peer.py [ADDRESS:]PORT SCENARIO [FILE]

What the token's user answers is in the relying party's name: "deny.example" is
refused, "wait.example" is never answered, and everything else is allowed.
"""

import hashlib
import json
import os
import socket
import sys
import threading
import time

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography import x509
from fido2 import cbor
from fido2.attestation import Attestation, PackedAttestation
from fido2.cose import ES256
from fido2.ctap import CtapError
from fido2.ctap1 import ApduError, Ctap1
from fido2.ctap2 import ClientPin, Config, CredentialManagement, Ctap2, LargeBlobs
from fido2.ctap2 import pin as pin_module
from fido2.ctap2.pin import PinProtocolV1, PinProtocolV2
from fido2.hid import CtapHidDevice, CTAPHID
from fido2.hid.base import CtapHidConnection, HidDescriptor

PERMISSION = ClientPin.PERMISSION
pin_module._pad_pin = lambda pin: pin.encode().ljust(64, b"\0")  # which would refuse short ones itself
ALGORITHMS = [{"alg": -257, "type": "public-key"}, {"alg": -7, "type": "public-key"}]


class Datagrams(CtapHidConnection):
    def __init__(self, port):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(40)
        self.socket.connect(("127.0.0.1", port))

    def read_packet(self):
        return self.socket.recv(64)

    def write_packet(self, data):
        self.socket.send(data)

    def close(self):
        self.socket.close()


PORT = int(sys.argv[1].rpartition(":")[2])


def device():
    return CtapHidDevice(HidDescriptor("", 0, 0, 64, 64), Datagrams(PORT))


def ctap2():
    return Ctap2(device())


def sha(b):
    return hashlib.sha256(b).digest()


def fails(error, f, *args, **kwargs):
    """f fails with an error, by its name in CtapError.ERR, its number or an APDU's."""
    try:
        f(*args, **kwargs)
    except CtapError as e:
        want = getattr(CtapError.ERR, error) if isinstance(error, str) else error
        assert int(e.code) == int(want), "%r, want %r" % (e.code, error)
    except ApduError as e:
        assert e.code == error, "%x, want %x" % (e.code, error)
    else:
        raise AssertionError("no error, want %r" % error)


class Host:
    """Makes and uses credentials, with a PIN or without."""

    def __init__(self, pin=None, protocol=None):
        self.ctap = ctap2()
        self.pin = pin
        self.protocol = protocol or PinProtocolV2()

    def client_pin(self):
        return ClientPin(self.ctap, self.protocol)

    def token(self, permissions, rp=None, pin=None):
        return self.client_pin().get_pin_token(pin or self.pin, permissions, rp)

    def auth(self, permission, rp, data):
        if self.pin is None:
            return {}
        token = self.token(permission, rp)
        return dict(
            pin_uv_param=self.protocol.authenticate(token, data),
            pin_uv_protocol=self.protocol.VERSION,
        )

    def make(self, rp="example.com", user=b"user", name="alice", uv=None, **kwargs):
        challenge = os.urandom(32)
        auth = {}
        if uv or uv is None:
            auth = self.auth(PERMISSION.MAKE_CREDENTIAL, rp, challenge)
        made = self.ctap.make_credential(
            challenge,
            {"id": rp, "name": "Example"},
            {"id": user, "name": name, "displayName": name.title()},
            ALGORITHMS,
            **dict(auth, **kwargs)
        )
        data = made.auth_data
        assert data.rp_id_hash == sha(rp.encode())
        assert data.is_user_present() and data.is_user_verified() == bool(auth)
        if made.fmt == "packed":
            PackedAttestation().verify(made.att_statement, data, challenge)
        return made

    def use(self, rp="example.com", made=None, uv=None, up=True, **kwargs):
        """Returns what answers, verified against the credential that was made."""
        challenge = os.urandom(32)
        auth = {}
        if uv or uv is None:
            auth = self.auth(PERMISSION.GET_ASSERTION, rp, challenge)
        if made is not None:
            kwargs["allow_list"] = [descriptor(made)]
        if not up:
            kwargs["options"] = {"up": False}
        used = self.ctap.get_assertion(rp, challenge, **dict(auth, **kwargs))
        if made is not None:
            used.verify(challenge, made.auth_data.credential_data.public_key)
            assert used.auth_data.is_user_present() == up
            assert used.auth_data.is_user_verified() == bool(auth)
        used.challenge = challenge
        return used


def descriptor(made):
    return {"id": made.auth_data.credential_data.credential_id, "type": "public-key"}


def secret(host, made, salts, rp="example.com", **kwargs):
    """Returns the outputs of hmac-secret."""
    key_agreement, shared = host.client_pin()._get_shared_secret()
    enc = host.protocol.encrypt(shared, b"".join(salts))
    used = host.use(
        rp,
        made,
        extensions={
            "hmac-secret": {
                1: key_agreement,
                2: enc,
                3: host.protocol.authenticate(shared, enc),
                4: host.protocol.VERSION,
            }
        },
        **kwargs
    )
    out = host.protocol.decrypt(shared, used.auth_data.extensions["hmac-secret"])
    assert len(out) == 32 * len(salts)
    return out


def basics():
    d = device()
    assert d.capabilities == 5 and d.version == 2
    for n in (0, 1, 57, 58, 116, 117, 1024, 7609):
        assert d.ping(os.urandom(n)) is not None
        b = os.urandom(n)
        assert d.ping(b) == b
    d.wink()
    d.lock(1)
    d.lock(0)
    host = Host()
    info = host.ctap.info
    assert info.versions == ["U2F_V2", "FIDO_2_0", "FIDO_2_1"], info.versions
    assert info.options["rk"] and info.options["clientPin"] is False
    assert info.aaguid.hex() != "00" * 16
    made = host.make()
    assert made.fmt == "packed" and made.auth_data.credential_data.aaguid == info.aaguid
    assert len(made.auth_data.credential_data.credential_id) <= 255
    counter = made.auth_data.counter
    for _ in range(3):
        used = host.use(made=made)
        assert used.user is None and used.number_of_credentials is None
        assert used.auth_data.counter > counter
        counter = used.auth_data.counter
    host.use(made=made, up=False)
    # Nothing but what was made, for whom it was made.
    fails("NO_CREDENTIALS", host.use, "other.example", made)
    fails("NO_CREDENTIALS", host.use)
    fails("CREDENTIAL_EXCLUDED", host.make, exclude_list=[descriptor(made)])
    host.make("other.example", exclude_list=[descriptor(made)])
    for i in range(8 * len(made.auth_data.credential_data.credential_id)):
        changed = bytearray(made.auth_data.credential_data.credential_id)
        changed[i // 8] ^= 1 << i % 8
        fails("NO_CREDENTIALS", host.use, allow_list=[{"id": bytes(changed), "type": "public-key"}])
    # A statement is not made if none is wanted.
    none = host.ctap.send_cbor(
        1,
        {1: sha(b""), 2: {"id": "example.com"}, 3: {"id": b"u"}, 4: ALGORITHMS, 11: ["none"]},
    )
    assert none[1] == "none" and none[3] == {}
    # What the user says.
    fails("OPERATION_DENIED", host.make, "deny.example")
    fails("OPERATION_DENIED", host.make, "broken.example")
    host.ctap.selection()
    # Several hosts.
    other = Host()
    other.use(made=made)


def cancel():
    host = Host()
    seen, event = [], threading.Event()
    threading.Timer(0.5, event.set).start()
    began = time.time()
    fails(
        "KEEPALIVE_CANCEL",
        host.ctap.make_credential,
        sha(b""),
        {"id": "wait.example"},
        {"id": b"u"},
        ALGORITHMS,
        event=event,
        on_keepalive=seen.append,
    )
    assert 2 in seen, seen  # up needed; perhaps with a time of processing around it
    host.make()


def pins():
    for protocol in (PinProtocolV1(), PinProtocolV2()):
        host = Host(protocol=protocol)
        pin = host.client_pin()
        assert pin.get_pin_retries() == (8, False)
        fails("PIN_NOT_SET", pin.get_pin_token, "1234", 1, "example.com")
        fails("PIN_POLICY_VIOLATION", pin.set_pin, "123")
        pin.set_pin("1234")
        assert host.ctap.get_info().options["clientPin"] is True
        fails("PIN_AUTH_INVALID", pin.set_pin, "1234")
        # Wrong, right, changed.
        key = host.ctap.client_pin(protocol.VERSION, 2)[1]
        assert host.ctap.client_pin(protocol.VERSION, 2)[1] == key
        fails("PIN_INVALID", pin.get_pin_token, "0000", 1, "example.com")
        assert host.ctap.client_pin(protocol.VERSION, 2)[1] != key
        assert pin.get_pin_retries() == (7, False)
        token = pin.get_pin_token("1234", 1, "example.com")
        assert len(token) == 32 and pin.get_pin_retries() == (8, False)
        fails("PIN_INVALID", pin.change_pin, "0000", "5678")
        fails("PIN_POLICY_VIOLATION", pin.change_pin, "1234", "567")
        pin.change_pin("1234", "pässwörd")
        fails("PIN_INVALID", pin.get_pin_token, "1234", 1, "example.com")
        host.pin = "pässwörd"
        # Permissions.
        fails("INVALID_PARAMETER", host.token, 0)
        fails("MISSING_PARAMETER", host.token, PERMISSION.MAKE_CREDENTIAL)
        fails(0x40, host.token, PERMISSION.BIO_ENROLL)
        made = host.make()
        used = host.use(made=made)
        assert used.auth_data.is_user_verified()
        challenge = os.urandom(32)
        for permissions, rp in ((PERMISSION.MAKE_CREDENTIAL, "example.com"), (PERMISSION.GET_ASSERTION, "other.example"), (PERMISSION.CREDENTIAL_MGMT, None)):
            token = host.token(permissions, rp)
            fails(
                "PIN_AUTH_INVALID",
                host.ctap.get_assertion,
                "example.com",
                challenge,
                [descriptor(made)],
                pin_uv_param=protocol.authenticate(token, challenge),
                pin_uv_protocol=protocol.VERSION,
            )
        # A token is good for one use, and for what it authenticates.
        token = host.token(PERMISSION.GET_ASSERTION, "example.com")
        param = protocol.authenticate(token, challenge)
        fails("PIN_AUTH_INVALID", host.ctap.get_assertion, "example.com", os.urandom(32), [descriptor(made)], pin_uv_param=param, pin_uv_protocol=protocol.VERSION)
        host.ctap.get_assertion("example.com", challenge, [descriptor(made)], pin_uv_param=param, pin_uv_protocol=protocol.VERSION)
        fails("PIN_AUTH_INVALID", host.ctap.get_assertion, "example.com", challenge, [descriptor(made)], pin_uv_param=param, pin_uv_protocol=protocol.VERSION)
        token = host.token(PERMISSION.GET_ASSERTION | PERMISSION.CREDENTIAL_MGMT, "example.com")
        host.ctap.get_assertion("example.com", challenge, [descriptor(made)], pin_uv_param=protocol.authenticate(token, challenge), pin_uv_protocol=protocol.VERSION)
        fails("PIN_AUTH_INVALID", CredentialManagement(host.ctap, protocol, token).enumerate_creds, sha(b"example.com"))
        # Without the PIN: what was made with it does not work, what was made without does.
        fails("PIN_REQUIRED", host.use, made=made, uv=False)
        free = host.make(uv=False)
        host.use(made=free, uv=False)
        host.use(made=free)
        fails("PIN_REQUIRED", host.make, uv=False, options={"rk": True})
        fails("INVALID_OPTION", host.make, uv=False, options={"uv": True})
        # An empty parameter asks which token to use.
        fails("PIN_INVALID", host.make, uv=False, pin_uv_param=b"", pin_uv_protocol=protocol.VERSION)
        # The token of CTAP 2.0.
        pin._supports_permissions = False
        token = pin.get_pin_token("pässwörd")
        host.ctap.get_assertion("example.com", challenge, [descriptor(made)], pin_uv_param=protocol.authenticate(token, challenge), pin_uv_protocol=protocol.VERSION)
        host.ctap.reset()
        fails("NO_CREDENTIALS", host.use, made=free, uv=False)
        assert host.ctap.get_info().options["clientPin"] is False
    fails(0x3e, host.client_pin().get_uv_retries)
    fails(0x3e, host.client_pin().get_uv_token, 1, "example.com")


def verified():
    """A user who is verified in place of the PIN."""
    for protocol in (PinProtocolV1(), PinProtocolV2()):
        host = Host(protocol=protocol)
        pin = host.client_pin()
        uv = lambda: host.ctap.get_info().options["uv"]
        # First the PIN.
        assert uv() is False and pin.get_uv_retries() == (0, None)
        fails("NOT_ALLOWED", pin.get_uv_token, 1, "example.com")
        pin.set_pin("1234")
        assert uv() is False
        fails(0x3C, pin.get_uv_token, 1, "example.com")
        fails("PIN_INVALID", pin.get_pin_token, "0000", 1, "example.com")
        assert uv() is False
        host.pin = "1234"
        made = host.make()
        assert uv() is True and pin.get_uv_retries() == (3, None)

        # Then the user: a token for each use, of both kinds of keys.
        host.token = lambda permissions, rp=None: pin.get_uv_token(permissions, rp)
        host.use(made=made)
        kept = host.make(options={"rk": True}, extensions={"hmac-secret": True})
        salt = os.urandom(32)
        by_uv = secret(host, kept, [salt])
        host.token = lambda permissions, rp=None: pin.get_pin_token("1234", permissions, rp)
        assert secret(host, kept, [salt]) == by_uv
        host.token = lambda permissions, rp=None: pin.get_uv_token(permissions, rp)
        # It is verification: whether to sign is another question, of the prompt.
        fails("OPERATION_DENIED", host.make, "deny.example")
        # Option uv is both.
        used = host.ctap.get_assertion("example.com", sha(b""), [descriptor(kept)], options={"uv": True})
        assert used.auth_data.is_user_verified() and used.auth_data.is_user_present()
        host.ctap.make_credential(sha(b""), {"id": "deny.example"}, {"id": b"u"}, ALGORITHMS, options={"uv": True})
        fails("INVALID_PARAMETER", pin.get_uv_token, 0)
        fails("MISSING_PARAMETER", pin.get_uv_token, PERMISSION.GET_ASSERTION)
        fails(0x40, pin.get_uv_token, PERMISSION.BIO_ENROLL)
        fails(0x40, pin.get_uv_token, PERMISSION.AUTHENTICATOR_CFG)
        token = pin.get_uv_token(PERMISSION.GET_ASSERTION, "example.com")
        challenge = os.urandom(32)
        fails("PIN_AUTH_INVALID", host.ctap.get_assertion, "deny.example", challenge, pin_uv_param=protocol.authenticate(token, challenge), pin_uv_protocol=protocol.VERSION)
        token = pin.get_uv_token(PERMISSION.CREDENTIAL_MGMT)
        manage = CredentialManagement(host.ctap, protocol, token)
        assert manage.get_metadata()[1] == 1

        # alwaysUv: verified even if the host does not ask for it.
        config = lambda: Config(host.ctap, protocol, pin.get_pin_token("1234", PERMISSION.AUTHENTICATOR_CFG))
        config().toggle_always_uv()
        assert host.ctap.make_credential(sha(b""), {"id": "example.com"}, {"id": b"u"}, ALGORITHMS).auth_data.is_user_verified()
        assert host.ctap.get_assertion("example.com", sha(b""), [descriptor(made)]).auth_data.is_user_verified()
        config().toggle_always_uv()

        # Who is not verified.
        token = pin.get_uv_token(PERMISSION.GET_ASSERTION, "example.com")
        other = Host(protocol=protocol).client_pin()
        fails(0x3F, other.get_uv_token, 1, "wrong.example")
        fails("OPERATION_DENIED", other.get_uv_token, 1, "dismiss.example")
        assert pin.get_uv_retries() == (1, None)
        fails(0x3C, other.get_uv_token, 1, "wrong.example")
        assert pin.get_uv_retries() == (0, None) and uv() is False
        fails(0x3C, pin.get_uv_token, 1, "example.com")
        fails("PIN_AUTH_INVALID", host.ctap.get_assertion, "example.com", challenge, [descriptor(made)], pin_uv_param=protocol.authenticate(token, challenge), pin_uv_protocol=protocol.VERSION)
        fails("PIN_REQUIRED", host.ctap.get_assertion, "example.com", sha(b""), [descriptor(made)], options={"uv": True})
        # The PIN is not blocked by that, and gives it back.
        pin.get_pin_token("1234", 1, "example.com")
        assert uv() is True
        event = threading.Event()
        threading.Timer(0.5, event.set).start()
        seen = []
        fails("KEEPALIVE_CANCEL", host.ctap.get_assertion, "wait.example", sha(b""), options={"uv": True}, event=event, on_keepalive=seen.append)
        assert 2 in seen, seen
        assert uv() is True
        # A PIN that has to be changed.
        config().set_min_pin_length(force_change_pin=True)
        assert uv() is False
        fails("PIN_POLICY_VIOLATION", pin.get_pin_token, "1234", 1, "example.com")
        assert uv() is False
        pin.change_pin("1234", "5678")
        assert uv() is False
        pin.get_pin_token("5678", 1, "example.com")
        assert uv() is True
        host.ctap.reset()
        assert uv() is False


def wrong_pins():
    """Three wrong PINs: the file says which PIN is right, and how many tries there are."""
    host = Host()
    pin = host.client_pin()
    want = json.load(open(sys.argv[3]))
    if want["tries"] == 8 and not want.get("set"):
        pin.set_pin("1234")
    assert pin.get_pin_retries() == (want["tries"], False)
    for i in range(3):
        left = want["tries"] - i - 1
        if left < 0:
            fails("PIN_BLOCKED", pin.get_pin_token, "1234", 1, "example.com")
            continue
        error = "PIN_BLOCKED" if left == 0 else "PIN_AUTH_BLOCKED" if i == 2 else "PIN_INVALID"
        fails(error, pin.get_pin_token, "0000", 1, "example.com")
        assert pin.get_pin_retries()[0] == left
    if want["tries"] > 3:
        assert pin.get_pin_retries() == (want["tries"] - 3, True)
        fails("PIN_AUTH_BLOCKED", pin.get_pin_token, "1234", 1, "example.com")
        fails("PIN_AUTH_BLOCKED", pin.change_pin, "1234", "5678")
    else:
        fails("PIN_BLOCKED", pin.change_pin, "1234", "5678")
        host.ctap.reset()
        pin.set_pin("5678")


def discoverable():
    host = Host()
    host.client_pin().set_pin("1234")
    host.pin = "1234"
    made = {}
    for i in range(120):
        user = b"user %d" % (i % 110)  # the last ten replace the first
        made[user] = host.make("many.example", user, "user %d" % i, options={"rk": True})
    small = host.make("few.example", b"1", "one", options={"rk": True})
    used = host.use("few.example")
    assert used.user == {"id": b"1"} and used.number_of_credentials is None
    used.verify(used.challenge, small.auth_data.credential_data.public_key)
    first = host.use("many.example")
    assert first.number_of_credentials == 110
    assert first.user == {"id": b"user 9", "name": "user 119", "displayName": "User 119"}, first.user
    seen = [first] + [host.ctap.get_next_assertion() for _ in range(109)]
    assert len({u.user["id"] for u in seen}) == 110
    for used in seen:
        used.verify(first.challenge, made[used.user["id"]].auth_data.credential_data.public_key)
        assert used.auth_data.is_user_verified()
    fails("NOT_ALLOWED", host.ctap.get_next_assertion)
    host.use("many.example")
    host.ctap.get_info()
    fails("NOT_ALLOWED", host.ctap.get_next_assertion)
    host.use("many.example")
    fails("NOT_ALLOWED", Host().ctap.get_next_assertion)
    fails("PIN_REQUIRED", host.use, "many.example", uv=False)

    # Management.
    def manage(rp=None):
        return CredentialManagement(host.ctap, host.protocol, host.token(PERMISSION.CREDENTIAL_MGMT, rp))

    m = manage()
    RESULT = CredentialManagement.RESULT
    meta = m.get_metadata()
    assert meta[RESULT.EXISTING_CRED_COUNT] == 111 and meta[RESULT.MAX_REMAINING_COUNT] == 889
    rps = m.enumerate_rps()
    assert {r[RESULT.RP]["id"] for r in rps} == {"many.example", "few.example"}
    creds = m.enumerate_creds(sha(b"many.example"))
    assert len(creds) == 110
    for c in creds:
        data = made[c[RESULT.USER]["id"]].auth_data.credential_data
        assert c[RESULT.CREDENTIAL_ID] == {"id": data.credential_id, "type": "public-key"}
        assert c[RESULT.PUBLIC_KEY] == data.public_key
        assert c[RESULT.CRED_PROTECT] == 3
    for c in creds[:100]:
        m.delete_cred(c[RESULT.CREDENTIAL_ID])
    fails("NO_CREDENTIALS", m.delete_cred, creds[0][RESULT.CREDENTIAL_ID])
    fails("NO_CREDENTIALS", host.use, "many.example", allow_list=[creds[0][RESULT.CREDENTIAL_ID]])
    left = creds[100]
    m = manage()
    m.update_user_info(left[RESULT.CREDENTIAL_ID], {"id": left[RESULT.USER]["id"], "name": "new", "displayName": "New"})
    fails("INVALID_PARAMETER", m.update_user_info, left[RESULT.CREDENTIAL_ID], {"id": b"other", "name": "new"})
    assert any(c[RESULT.USER].get("name") == "new" for c in m.enumerate_creds(sha(b"many.example")))
    # A session for one relying party.
    m = manage("few.example")
    assert len(m.enumerate_creds(sha(b"few.example"))) == 1
    fails("PIN_AUTH_INVALID", m.get_metadata)
    fails("PIN_AUTH_INVALID", m.enumerate_creds, sha(b"many.example"))
    fails("PIN_AUTH_INVALID", m.delete_cred, left[RESULT.CREDENTIAL_ID])
    # Neither without PIN nor with another permission.
    fails("PIN_REQUIRED", host.ctap.credential_mgmt, 1)
    m = CredentialManagement(host.ctap, host.protocol, host.token(PERMISSION.GET_ASSERTION, "few.example"))
    fails("PIN_AUTH_INVALID", m.get_metadata)
    fails("NOT_ALLOWED", m.enumerate_rps_next)
    fails("NOT_ALLOWED", m.enumerate_creds_next)


def extensions():
    host = Host()
    # credProtect, without a PIN.
    for level in (1, 2, 3):
        made = host.make("protect.example", b"%d" % level, extensions={"credProtect": level}, options={"rk": True})
        assert made.auth_data.extensions == {"credProtect": level}
    used = host.use("protect.example")  # one that is not protected
    assert used.user == {"id": b"1"} and used.number_of_credentials is None
    two = host.make("protect2.example", b"2", extensions={"credProtect": 2}, options={"rk": True})
    fails("NO_CREDENTIALS", host.use, "protect2.example")
    host.use("protect2.example", two)
    three = host.make("protect3.example", b"3", extensions={"credProtect": 3})
    fails("NO_CREDENTIALS", host.use, "protect3.example", three)
    id = three.auth_data.credential_data.credential_id
    for level in (1, 2):  # nor by an ID that says otherwise
        fails("NO_CREDENTIALS", host.use, "protect3.example", allow_list=[{"id": bytes([id[0] & ~3 | level]) + id[1:], "type": "public-key"}])
    host.make("protect3.example", exclude_list=[descriptor(three)])
    fails("INVALID_OPTION", host.make, extensions={"credProtect": 4})
    # credBlob.
    made = host.make("blob.example", extensions={"credBlob": b"x" * 32}, options={"rk": True})
    assert made.auth_data.extensions == {"credBlob": True}
    assert host.use("blob.example", made, extensions={"credBlob": True}).auth_data.extensions == {"credBlob": b"x" * 32}
    assert "credBlob" not in (host.use("blob.example", made).auth_data.extensions or {})
    assert host.make("blob.example", extensions={"credBlob": b"x" * 33}, options={"rk": True}).auth_data.extensions == {"credBlob": False}
    assert host.make("blob.example", extensions={"credBlob": b"x"}).auth_data.extensions == {"credBlob": False}
    # With a PIN, the level that is said is the one that holds.
    host.client_pin().set_pin("1234")
    host.pin = "1234"
    assert host.make(extensions={"credProtect": 1}).auth_data.extensions == {"credProtect": 3}
    assert host.use("protect.example").number_of_credentials == 3
    host.use("protect3.example", three)
    # minPinLength.
    assert host.make(extensions={"minPinLength": True}).auth_data.extensions is None
    config = Config(host.ctap, host.protocol, host.token(PERMISSION.AUTHENTICATOR_CFG))
    fails("PIN_POLICY_VIOLATION", config.set_min_pin_length, 3)
    config.set_min_pin_length(6, ["example.com"])
    # The PIN is too short now.
    fails("PIN_POLICY_VIOLATION", host.make)
    assert host.ctap.get_info().force_pin_change is True
    fails("PIN_POLICY_VIOLATION", host.client_pin().change_pin, "1234", "12345")
    host.client_pin().change_pin("1234", "123456")
    host.pin = "123456"
    assert host.ctap.get_info().force_pin_change is False
    assert host.ctap.get_info().min_pin_length == 6
    assert host.make(extensions={"minPinLength": True}).auth_data.extensions == {"minPinLength": 6}
    assert host.make("other.example", extensions={"minPinLength": True}).auth_data.extensions is None
    config = Config(host.ctap, host.protocol, host.token(PERMISSION.AUTHENTICATOR_CFG))
    config.set_min_pin_length(force_change_pin=True)
    fails("PIN_POLICY_VIOLATION", host.make)
    fails("PIN_POLICY_VIOLATION", host.client_pin().change_pin, "123456", "123456")
    host.client_pin().change_pin("123456", "1234567")
    host.pin = "1234567"
    # alwaysUv.
    free = host.make(uv=False)
    config = Config(host.ctap, host.protocol, host.token(PERMISSION.AUTHENTICATOR_CFG))
    config.toggle_always_uv()
    info = host.ctap.get_info()
    assert info.options["alwaysUv"] and not info.options["makeCredUvNotRqd"] and "U2F_V2" not in info.versions
    fails("PIN_REQUIRED", host.make, uv=False)
    fails("PIN_REQUIRED", host.use, made=free, uv=False)
    host.use(made=free, uv=False, up=False)
    host.use(made=free)
    fails(0x6986, Ctap1(host.ctap.device).register, sha(b"c"), sha(b"a"))
    fails("PIN_REQUIRED", host.ctap.config, 2)
    config = Config(host.ctap, host.protocol, host.token(PERMISSION.AUTHENTICATOR_CFG))
    config.toggle_always_uv()
    host.make(uv=False)
    fails(0x3E, host.ctap.config, 1)


def blobs():
    host = Host()
    made = host.make("blob.example", b"1", options={"rk": True}, extensions={"largeBlobKey": True})
    raw = host.ctap.send_cbor(2, {1: "blob.example", 2: sha(b""), 4: {"largeBlobKey": True}})
    key = raw[7]
    assert len(key) == 32
    fails("INVALID_OPTION", host.make, extensions={"largeBlobKey": True})
    fails("INVALID_OPTION", host.make, options={"rk": True}, extensions={"largeBlobKey": False})
    b = LargeBlobs(host.ctap)
    assert b.read_blob_array() == []
    b.put_blob(key, b"a large blob")
    assert b.get_blob(key) == b"a large blob"
    # 60 KB, in messages as long as they get. put_blob names the length of each part
    # where that of the whole belongs.
    entries = [{1: os.urandom(60 << 10), 2: os.urandom(12), 3: 60 << 10}]
    whole = cbor.encode(entries)
    whole += sha(whole)[:16]
    for at in range(0, len(whole), b.max_fragment_length):
        part = whole[at : at + b.max_fragment_length]
        host.ctap.large_blobs(at, set=part, length=None if at else len(whole))
    assert b.read_blob_array() == entries
    b.write_blob_array([])
    host.client_pin().set_pin("1234")
    fails("PIN_REQUIRED", b.put_blob, key, b"another")
    token = host.token(PERMISSION.LARGE_BLOB_WRITE, pin="1234")
    b = LargeBlobs(host.ctap, host.protocol, token)
    b.put_blob(key, b"another")
    assert b.get_blob(key) == b"another"
    b.delete_blob(key)
    assert b.get_blob(key) is None
    fails("INVALID_LENGTH", host.ctap.large_blobs, 0, get=7609)
    fails("INVALID_PARAMETER", host.ctap.large_blobs, 18, get=1)
    fails("INVALID_PARAMETER", host.ctap.large_blobs, 0)


def u2f():
    d = device()
    ctap1 = Ctap1(d)
    assert ctap1.get_version() == "U2F_V2"
    client, app = os.urandom(32), sha(b"https://example.com")

    def poll(f, *args):
        seen = 0
        while True:
            try:
                return f(*args), seen
            except ApduError as e:
                assert e.code == 0x6985, "%x" % e.code
                seen += 1
                time.sleep(0.05)

    registration, seen = poll(ctap1.register, client, app)
    assert seen > 0
    registration.verify(app, client)
    certificate = x509.load_der_x509_certificate(registration.certificate)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.value.ca is False
    certificate.public_key().verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(SHA256()))
    other, _ = poll(ctap1.register, os.urandom(32), app)
    assert other.certificate != registration.certificate and other.key_handle != registration.key_handle
    counter = 0
    for _ in range(3):
        challenge = os.urandom(32)
        used, seen = poll(ctap1.authenticate, challenge, app, registration.key_handle)
        assert seen > 0 and used.user_presence == 1 and used.counter > counter
        counter = used.counter
        used.verify(app, challenge, registration.public_key)
    # Check only, and without a user.
    fails(0x6985, ctap1.authenticate, client, app, registration.key_handle, True)
    fails(0x6A80, ctap1.authenticate, client, sha(b"other"), registration.key_handle, True)
    fails(0x6A80, ctap1.authenticate, client, app, b"x" * 64)
    answer = ctap1.send_apdu(0, 2, 8, 0, client + app + bytes([len(registration.key_handle)]) + registration.key_handle)
    assert answer[0] == 0
    # The same credential by CTAP2, for the application's hash as a relying party's name has it.
    host = Host()
    made, _ = poll(ctap1.register, client, sha(b"example.com"))
    host.ctap.get_assertion("example.com", client, [{"id": made.key_handle, "type": "public-key"}])
    by2 = host.make("example.com")
    used, _ = poll(ctap1.authenticate, client, sha(b"example.com"), by2.auth_data.credential_data.credential_id)
    # Who is refused is told so.
    fails(0x6985, ctap1.register, client, b"\xde" * 32)
    time.sleep(0.3)
    fails(0x6F00, ctap1.register, client, b"\xde" * 32)
    # Malformed.
    for apdu, word in (
        (b"", None),
        (b"\x00", 0x6700),
        (b"\x00\x01\x00", 0x6700),
        (b"\x01\x03\x00\x00", 0x6E00),
        (b"\x00\x09\x00\x00", 0x6D00),
        (b"\x00\x03\x00\x00\x00\x00\x01x", 0x6700),
        (b"\x00\x01\x00\x00\x00\x00\x3f" + b"x" * 63, 0x6700),
        (b"\x00\x01\x00\x00\x00\x00\x41" + b"x" * 64, 0x6700),
        (b"\x00\x02\x03\x00\x00\x00\x40" + b"x" * 64, 0x6700),
        (b"\x00\x02\x03\x00\x00\x00\x41" + b"x" * 64 + b"\x01", 0x6700),
        (b"\x00\x02\x04\x00\x00\x00\x42" + b"x" * 64 + b"\x01x", 0x6A86),
        (b"\x00\x03\x00\x00\x00", 0x9000),
        (b"\x00\x03\x00\x00\x00\x00\x00", 0x9000),
        (b"\x00\x03\x00\x00", 0x9000),
    ):
        if word is None:
            fails("INVALID_LENGTH", d.call, CTAPHID.MSG, apdu)
            continue
        got = d.call(CTAPHID.MSG, apdu)
        assert int.from_bytes(got[-2:], "big") == word, (apdu, got.hex())


def secrets():
    """hmac-secret: different per credential, salt and verification; the file keeps what a restart must not change."""
    host = Host()
    salts = [sha(b"salt 1"), sha(b"salt 2")]
    try:
        kept = json.load(open(sys.argv[3]))
    except FileNotFoundError:
        kept = None
    if kept is None:
        creds = [host.make(extensions={"hmac-secret": True}) for _ in range(2)]
        creds.append(host.make("rk.example", extensions={"hmac-secret": True}, options={"rk": True}))
        for c in creds:
            assert c.auth_data.extensions == {"hmac-secret": True}
        host.client_pin().set_pin("1234")
        host.pin = "1234"
        creds.append(host.make(extensions={"hmac-secret": True}))
    else:
        host.pin = "1234"

        class Made:
            pass

        creds = []
        for c in kept["credentials"]:
            m = Made()
            m.auth_data = Made()
            m.auth_data.credential_data = Made()
            m.auth_data.credential_data.credential_id = bytes.fromhex(c["id"])
            m.auth_data.credential_data.public_key = ES256({int(k): v if isinstance(v, int) else bytes.fromhex(v) for k, v in c["key"].items()})
            creds.append(m)
    out = {}
    rps = ["example.com", "example.com", "rk.example", "example.com"]
    for protocol in (PinProtocolV1(), PinProtocolV2()):
        host.protocol = protocol
        for i, c in enumerate(creds):
            for uv in (False, True):
                if i == 3 and not uv:
                    fails("PIN_REQUIRED", secret, host, c, salts, uv=False)
                    continue
                both = secret(host, c, salts, rps[i], uv=uv)
                assert secret(host, c, salts[:1], rps[i], uv=uv) == both[:32]
                assert secret(host, c, salts[::-1], rps[i], uv=uv) == both[32:] + both[:32]
                for n in range(2):
                    name = "%d %s %d" % (i, uv, n)
                    assert out.setdefault(name, both[32 * n : 32 * n + 32].hex()) == both[32 * n : 32 * n + 32].hex()
    assert len(set(out.values())) == len(out) == 14, out
    fails("UNSUPPORTED_OPTION", secret, host, creds[0], salts, up=False, uv=False)
    fails("INVALID_LENGTH", secret, host, creds[0], [b"x" * 16], uv=False)
    plain = host.make(uv=False)
    used = None
    try:
        secret(host, plain, salts, uv=False)
    except (KeyError, TypeError) as e:
        used = e
    assert used is not None  # no output without a secret
    if kept is None:
        json.dump(
            {
                "out": out,
                "credentials": [
                    {
                        "id": c.auth_data.credential_data.credential_id.hex(),
                        "key": {k: v if isinstance(v, int) else v.hex() for k, v in c.auth_data.credential_data.public_key.items()},
                    }
                    for c in creds
                ],
            },
            open(sys.argv[3], "w"),
        )
    else:
        assert out == kept["out"]


def selection():
    ctap2().selection()


def keep():
    """Two accounts, one of which needs the PIN 1234."""
    host = Host()
    host.make("example.com", b"1", "alice", options={"rk": True})
    host.client_pin().set_pin("1234")
    host.pin = "1234"
    host.make("example.org", b"2", "bob\u202e", options={"rk": True})


def endless():
    """Makes and uses credentials until the token dies, and writes down what it said."""
    host, log = Host(), open(sys.argv[3], "a")
    host.ctap.device._connection.socket.settimeout(2)
    i = 0
    while True:
        i += 1
        made = host.make("kill.example", os.urandom(8), options={"rk": True} if i % 2 else {})
        data = made.auth_data.credential_data
        key = {k: v if isinstance(v, int) else v.hex() for k, v in data.public_key.items()}
        print(json.dumps({"id": data.credential_id.hex(), "key": key, "counter": made.auth_data.counter}), file=log, flush=True)
        used = host.use("kill.example", made)
        print(json.dumps({"counter": used.auth_data.counter}), file=log, flush=True)


def survived():
    """What the token said before it died holds."""
    host = Host()
    said = [json.loads(line) for line in open(sys.argv[3]) if line.endswith("\n")]
    counter = max([s["counter"] for s in said], default=0)
    for s in said[-12:]:
        if "id" not in s:
            continue
        challenge = os.urandom(32)
        used = host.ctap.get_assertion("kill.example", challenge, [{"id": bytes.fromhex(s["id"]), "type": "public-key"}])
        used.verify(challenge, ES256({int(k): v if isinstance(v, int) else bytes.fromhex(v) for k, v in s["key"].items()}))
        assert used.auth_data.counter > counter, "the counter went back"
        counter = used.auth_data.counter
    print(len(said))


def late_reset():
    fails("NOT_ALLOWED", ctap2().reset)


globals()[sys.argv[2]]()
