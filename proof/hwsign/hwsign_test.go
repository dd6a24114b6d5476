package hwsign

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

func reasonOf(err error) proof.Reason {
	var r *proof.Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	if err != nil {
		return "not a refusal"
	}
	return ""
}

// newKey returns a P-256 key as a point and as SPKI, both in base64.
func newKey(t testing.TB) (point, spki string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(b), base64.StdEncoding.EncodeToString(der)
}

func header(pairs ...string) map[string][]string {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Add(pairs[i], pairs[i+1])
	}
	return h
}

// The names are those of the wire, in the form in which net/http stores them.
func TestNames(t *testing.T) {
	for prefix, n := range map[string]Names{"x-rpc-sec-bound-token-": BoundToken, "x-rpc-sec-dbcs-": DBCS} {
		var want []string
		for _, name := range strings.Fields("hw-pub hw-pub-type hw-level accel-pub accel-pub-type accel-pub-sig accel-pub-id accel-pub-expire data data-sig") {
			want = append(want, http.CanonicalHeaderKey(prefix+name))
		}
		if !slices.Equal(n.All(), want) {
			t.Errorf("%s: %v, want %v", prefix, n.All(), want)
		}
	}
}

func TestParseData(t *testing.T) {
	const random = "00112233445566778899aabbccddeeff"
	for _, tt := range []struct {
		name, data string
		time       time.Time
		random     int
		claim      string
	}{
		{"README", "1764000000-" + random + random, time.Unix(1764000000, 0), 64, random + random},
		{"C++ test client", "1764000000-" + random + random, time.Unix(1764000000, 0), 64, random + random},
		{"Python", "1764000000-" + random, time.Unix(1764000000, 0), 32, random},
		{"Go tests", "1764000000123456789-" + random, time.Unix(1764000000, 123456789), 32, random},
		{"browser, Android", "1764000000123", time.UnixMilli(1764000000123), 0, ""},
		{"microseconds", "1764000000123456", time.UnixMicro(1764000000123456), 0, ""},
		{"Apple, Windows app", "1764000000", time.Unix(1764000000, 0), 0, ""},
		{"browser with a body", `{"amount":1}`, time.Time{}, 0, `{"amount":1}`},
		{"body that begins with digits", `12 apples`, time.Time{}, 0, "12 apples"},
		{"time and nothing", "1764000000-", time.Unix(1764000000, 0), 0, ""},
		{"zero", "0", time.Unix(0, 0), 0, ""},
		{"minus", "-1764000000", time.Time{}, 0, "-1764000000"},
		{"more than an int64", "9999999999999999999", time.Time{}, 0, "9999999999999999999"},
		{"twenty digits", "17640000000000000000", time.Time{}, 0, "17640000000000000000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at, n, claim := parseData([]byte(tt.data))
			if !at.Equal(tt.time) || n != tt.random || string(claim) != tt.claim {
				t.Errorf("%v, %d, %q; want %v, %d, %q", at, n, claim, tt.time, tt.random, tt.claim)
			}
		})
	}
}

func TestOffer(t *testing.T) {
	point, spki := newKey(t)
	for _, n := range []Names{BoundToken, DBCS} {
		for _, tt := range []struct {
			name   string
			header map[string][]string
			level  proof.Level // "" for none
			reason proof.Reason
		}{
			{"point", header(n.DeviceKey, point, n.DeviceKeyType, "ecdsa"), proof.Software, ""},
			{"SPKI, mixed case", header(n.DeviceKey, spki, n.DeviceKeyType, "ECDSA-P256"), proof.Software, ""},
			{"URL alphabet, no padding", header(n.DeviceKey, strings.NewReplacer("+", "-", "/", "_", "=", "").Replace(point), n.DeviceKeyType, "ecdsa"), proof.Software, ""},
			{"says hardware", header(n.DeviceKey, point, n.DeviceKeyType, "ecdsa", n.DeviceKeyLevel, "hardware"), proof.Hardware, ""},
			{"says attested", header(n.DeviceKey, point, n.DeviceKeyType, "ecdsa", n.DeviceKeyLevel, "hardware-attested"), proof.Software, ""},
			{"none", header(), "", ""},
			{"no type", header(n.DeviceKey, point), "", proof.Malformed},
			{"agreement key", header(n.DeviceKey, point, n.DeviceKeyType, "ecdh"), "", proof.Malformed},
			{"agreement key, long", header(n.DeviceKey, point, n.DeviceKeyType, "ecdh-p256"), "", proof.Malformed},
			{"unknown type", header(n.DeviceKey, point, n.DeviceKeyType, "dsa"), "", proof.Malformed},
			{"not base64", header(n.DeviceKey, "?", n.DeviceKeyType, "ecdsa"), "", proof.Malformed},
			{"not a key", header(n.DeviceKey, "AAAA", n.DeviceKeyType, "ecdsa"), "", proof.Malformed},
			{"twice", header(n.DeviceKey, point, n.DeviceKey, spki, n.DeviceKeyType, "ecdsa"), "", proof.Malformed},
			{"too large", header(n.DeviceKey, strings.Repeat("A", 9000), n.DeviceKeyType, "ecdsa"), "", proof.TooLarge},
		} {
			t.Run(tt.name, func(t *testing.T) {
				offer, err := Wire{}.Offer(&proof.Message{Header: tt.header})
				if reasonOf(err) != tt.reason {
					t.Fatalf("%v, want %q", err, tt.reason)
				}
				if (offer != nil) != (tt.level != "") || offer != nil && offer.Level != tt.level {
					t.Errorf("%+v, want level %q", offer, tt.level)
				}
			})
		}
	}
}

func TestExtract(t *testing.T) {
	point, _ := newKey(t)
	n := BoundToken
	known := header(n.Data, "1764000000-ab", n.DataSig, "c2ln", n.EphemeralID, "id")
	intro := header(n.Data, "1764000000-ab", n.DataSig, "c2ln", n.EphemeralKey, point, n.EphemeralType, "ecdh", n.EphemeralSig, "c2ln")
	with := func(h map[string][]string, pairs ...string) map[string][]string {
		h = maps.Clone(h)
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i+1] == "" {
				delete(h, pairs[i])
			} else {
				h[pairs[i]] = []string{pairs[i+1]}
			}
		}
		return h
	}
	for _, tt := range []struct {
		name   string
		header map[string][]string
		found  bool
		reason proof.Reason
	}{
		{"nothing", header(), false, ""},
		{"only a device key", header(n.DeviceKey, point), false, ""},
		{"known key", known, true, ""},
		{"introduction", intro, true, ""},
		{"both", with(intro, n.EphemeralID, "id"), true, ""},
		{"no value", with(known, n.Data, ""), false, proof.Malformed},
		{"no signature", with(known, n.DataSig, ""), false, proof.Malformed},
		{"no key", with(known, n.EphemeralID, ""), false, proof.Malformed},
		{"no type", with(intro, n.EphemeralType, ""), false, proof.Malformed},
		{"unknown type", with(intro, n.EphemeralType, "rot13"), false, proof.Malformed},
		{"signature is not base64", with(known, n.DataSig, "%%%"), false, proof.Malformed},
		{"delegation is not base64", with(intro, n.EphemeralSig, "%%%"), false, proof.Malformed},
		{"key is not base64", with(intro, n.EphemeralKey, "%%%"), false, proof.Malformed},
		{"value too large", with(known, n.Data, strings.Repeat("1", 8193)), false, proof.TooLarge},
		{"signature too large", with(known, n.DataSig, strings.Repeat("A", 8193)), false, proof.TooLarge},
		{"both prefixes", with(known, DBCS.Data, "1"), false, proof.Malformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var p proof.Proof
			found, err := Wire{}.Extract(&proof.Message{Header: tt.header}, &p)
			if found != tt.found || reasonOf(err) != tt.reason {
				t.Errorf("%v, %v; want %v, %q", found, err, tt.found, tt.reason)
			}
			if found && (p.Delegation == nil) == (p.KeyID == "") {
				t.Error("neither or both of key and delegation came out")
			}
		})
	}
	for name := range known {
		twice := maps.Clone(known)
		twice[name] = append(slices.Clone(twice[name]), "x")
		if _, err := (Wire{}).Extract(&proof.Message{Header: twice}, new(proof.Proof)); reasonOf(err) != proof.Malformed {
			t.Errorf("%s twice: %v", name, err)
		}
	}
}

// The device key signs the text of the header, whatever its spelling.
func TestDelegationCoversTheTextAsSent(t *testing.T) {
	point, _ := newKey(t)
	for _, text := range []string{point, strings.TrimRight(point, "=")} {
		var p proof.Proof
		_, err := Wire{}.Extract(&proof.Message{Header: header(
			DBCS.Data, "1", DBCS.DataSig, "AA", DBCS.EphemeralKey, text, DBCS.EphemeralType, "ecdh-p256", DBCS.EphemeralSig, "AA")}, &p)
		if err != nil {
			t.Fatal(err)
		}
		if string(p.Delegation.Signed) != text {
			t.Errorf("signed text is %q, want %q", p.Delegation.Signed, text)
		}
	}
}

func TestAdmitted(t *testing.T) {
	_, spki := newKey(t)
	der, _ := base64.StdEncoding.DecodeString(spki)
	server, err := proof.ParsePublicKey(proof.HMACSHA256, der)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []Names{BoundToken, DBCS} {
		for typeName, want := range map[string][]byte{"ecdh": server.Bytes(), "ECDH": server.Bytes(), "ecdh-p256": der} {
			response := http.Header{}
			m := proof.Message{Header: header(n.Data, "1", n.EphemeralType, typeName)}
			Wire{}.Admitted(&m, response, &proof.Introduced{ID: "id", Server: server, Expires: time.Unix(1764000900, 0)}, "")
			got, _ := base64.StdEncoding.DecodeString(response.Get(n.EphemeralKey))
			if !bytes.Equal(got, want) || response.Get(n.EphemeralID) != "id" || response.Get(n.EphemeralExpire) != "1764000900" || len(response) != 3 {
				t.Errorf("%s: %v", typeName, response)
			}
		}
		response := http.Header{}
		m := proof.Message{Header: header(n.Data, "1", n.EphemeralType, "ecdsa")}
		Wire{}.Admitted(&m, response, &proof.Introduced{ID: "id", Expires: time.Unix(1, 0)}, "")
		if _, ok := response[n.EphemeralKey]; ok {
			t.Error("a server key for a signing key")
		}
	}
}

func FuzzExtract(f *testing.F) {
	point, spki := newKey(f)
	f.Add("1764000000-00112233", "c2ln", "0abc", "", "", "", false)
	f.Add(`{"a":1}`, "c2ln", "", point, "ecdh", "c2ln", true)
	f.Add("1764000000123", "c2ln", "", spki, "ecdh-p256", "c2ln", false)
	f.Fuzz(func(t *testing.T, data, sig, id, key, typeName, keySig string, dbcs bool) {
		n := BoundToken
		if dbcs {
			n = DBCS
		}
		h := map[string][]string{}
		for name, v := range map[string]string{n.Data: data, n.DataSig: sig, n.EphemeralID: id, n.EphemeralKey: key, n.EphemeralType: typeName, n.EphemeralSig: keySig} {
			if v != "" {
				h[name] = []string{v}
			}
		}
		var p proof.Proof
		m := proof.Message{Header: h}
		found, err := Wire{}.Extract(&m, &p)
		if err != nil && reasonOf(err) == "not a refusal" {
			t.Fatalf("error that is no refusal: %v", err)
		}
		if !found {
			return
		}
		if string(p.Signed) != data {
			t.Fatal("the value is not the header as sent")
		}
		if (p.Delegation == nil) != (key == "") {
			t.Fatal("introduction and key disagree")
		}
	})
}

func FuzzOffer(f *testing.F) {
	point, spki := newKey(f)
	f.Add(point, "ecdsa", "hardware")
	f.Add(spki, "ecdsa-p256", "")
	f.Add("AAAA", "rsa-2048", "software")
	f.Fuzz(func(t *testing.T, key, typeName, level string) {
		m := proof.Message{Header: header(BoundToken.DeviceKey, key, BoundToken.DeviceKeyType, typeName, BoundToken.DeviceKeyLevel, level)}
		offer, err := Wire{}.Offer(&m)
		if err != nil && reasonOf(err) == "not a refusal" {
			t.Fatalf("error that is no refusal: %v", err)
		}
		if offer != nil && offer.Key.Algorithm() == proof.HMACSHA256 {
			t.Fatal("an agreement key as device key")
		}
	})
}
