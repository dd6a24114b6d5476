package vectors_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

// channelFile is channel.json. The package's comment explains the members.
type channelFile struct {
	Comment []string         `json:"comment"`
	Keys    []*key           `json:"keys"`
	Tokens  []*channelToken  `json:"tokens"`
	Request *channelRequest  `json:"request"`
	Sample  []*channelSample `json:"sample"`
}

type channelToken struct {
	Name      string            `json:"name"`
	Client    string            `json:"client"`
	Secret    string            `json:"secret,omitempty"`
	Key       string            `json:"key,omitempty"`
	Algorithm string            `json:"algorithm"`
	Authority string            `json:"authority"`
	Form      string            `json:"form"`
	Label     string            `json:"exporter_label"`
	Context   string            `json:"exporter_context"`
	Exported  string            `json:"exported"`
	Root      string            `json:"root,omitempty"`
	Derived   map[string]string `json:"derived,omitempty"`
	Statement string            `json:"statement,omitempty"`
	Claim     string            `json:"claim,omitempty"`
	Now       int64             `json:"now,omitempty"`
	Header    string            `json:"jwt_header,omitempty"`
	Claims    string            `json:"jwt_claims,omitempty"`
	JWT       string            `json:"jwt,omitempty"`
	JWEHeader string            `json:"jwe_header,omitempty"`
	IV        string            `json:"iv,omitempty"`
	Token     string            `json:"token"`
}

type channelRequest struct {
	Token string `json:"token"`
	Now   int64  `json:"now"`
	message
	KeyID     string   `json:"keyid"`
	Nonce     string   `json:"nonce"`
	Base      []string `json:"base"`
	Input     string   `json:"signature_input"`
	Signature string   `json:"signature"`
}

type channelSample struct {
	Name      string `json:"name"`
	Client    string `json:"client"`
	Secret    string `json:"secret"`
	Exported  string `json:"exported"`
	TokenText string `json:"token"`
	Tag       string `json:"tag"`
	Key       string `json:"jwt_key"`
	JWT       string `json:"jwt"`
	IV        string `json:"iv"`
	JWE       string `json:"jwe"`
}

// TestChannelFile makes every value of the file anew, from what docs/wire.md says
// and nothing of package channel.
func TestChannelFile(t *testing.T) {
	var stored channelFile
	b := read(t, "channel.json", &stored)
	compare(t, "channel.json", b, makeChannel(t, &stored, b))
}

const (
	channelNow = 1764000000
	channelTyp = "limpet-channel+jwt"
)

func mac(key, message []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(message)
	return h.Sum(nil)
}

// sealed is a JWE of dir and A256GCM (RFC 7516, 5.1).
func sealed(s *signer, key []byte, header string, iv []byte, text string) string {
	s.Helper()
	block, err := aes.NewCipher(key)
	s.must(err)
	aead, err := cipher.NewGCM(block)
	s.must(err)
	protected := b64url([]byte(header))
	out := aead.Seal(nil, iv, []byte(text), []byte(protected))
	return protected + ".." + b64url(iv) + "." + b64url(out[:len(text)]) + "." + b64url(out[len(text):])
}

func makeChannel(t testing.TB, stored *channelFile, b []byte) *channelFile {
	s := newSigner(t, stored.Keys, b)
	f := &channelFile{Comment: []string{
		"Test vectors of tokens that live for one TLS connection. The documentation of the Go package limpettest/vectors explains every member.",
		"The secrets and the private key are public: never use them for anything but tests.",
	}}
	pair := s.key("channel client", "ecdsa-p256-sha256")
	f.Keys = append(f.Keys, pair)
	const client, host = "billing", "api.example.com"
	for _, tt := range []struct{ name, form, authority, key string }{
		{"token", "token", host, ""},
		{"token, with a port", "token", host + ":8443", ""},
		{"JWT", "jwt", host, ""},
		{"JWE", "jwe", host, ""},
		{"token of a key pair", "token", host, pair.Name},
		{"JWT of a key pair", "jwt", host, pair.Name},
	} {
		v := &channelToken{Name: tt.name, Client: client, Authority: tt.authority, Form: tt.form, Label: "EXPORTER-limpet-channel",
			Algorithm: "hmac-sha256", Exported: hex.EncodeToString(sum("limpet test exported: " + tt.name))}
		public := ""
		if tt.key != "" {
			v.Key, v.Algorithm = tt.key, "ecdsa-p256"
			public = string(unhex(t, pair.Public))
		}
		var context []byte
		for _, field := range []string{"limpet channel 1", v.Algorithm, client, public, "https", tt.authority, tt.form} {
			context = binary.BigEndian.AppendUint16(context, uint16(len(field)))
			context = append(context, field...)
		}
		v.Context = hex.EncodeToString(context)
		exported := unhex(t, v.Exported)
		derived := map[string][]byte{}
		if tt.key == "" {
			secret := sum("limpet test secret: " + client)
			root := mac(secret, append([]byte("limpet channel secret 1\x00"), exported...))
			v.Secret, v.Root, v.Derived = hex.EncodeToString(secret), hex.EncodeToString(root), map[string]string{}
			for _, what := range []string{"token", "jwt", "jwe", "request"} {
				derived[what] = mac(root, []byte("limpet channel "+what+" 1\x00"))
				v.Derived[what] = hex.EncodeToString(derived[what])
			}
		}
		sign := func(message string) []byte {
			if tt.key != "" {
				return s.sign(pair, "ecdsa-p256-sha256", []byte(message))
			}
			return mac(derived["jwt"], []byte(message))
		}
		if tt.form == "token" {
			tag := derived["token"]
			if tt.key != "" {
				v.Statement = hex.EncodeToString([]byte(strings.Repeat(" ", 64) + "Limpet channel token 1\x00" + string(exported)))
				tag = sign(string(unhex(t, v.Statement)))
			}
			v.Token = "limpet1." + b64url([]byte(client)) + "." + b64url(tag)
		} else {
			alg, more := "HS256", ""
			if tt.key != "" {
				alg, v.Claim = "ES256", b64url(sum("limpet channel claim 1\x00"+string(exported)))
				more = `,"limpet_exporter":"` + v.Claim + `"`
			}
			v.Now = channelNow
			v.Header = fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":%q}`, alg, client, channelTyp)
			v.Claims = fmt.Sprintf(`{"iss":%q,"sub":%q,"aud":%q,"exp":%d,"nbf":%d,"iat":%d,"jti":%q%s}`, client, client, "https://"+tt.authority,
				channelNow+300, channelNow, channelNow, nonce(tt.name), more)
			v.JWT = b64url([]byte(v.Header)) + "." + b64url([]byte(v.Claims))
			v.JWT += "." + b64url(sign(v.JWT))
			v.Token = v.JWT
		}
		if tt.form == "jwe" {
			v.JWEHeader = fmt.Sprintf(`{"alg":"dir","cty":"JWT","enc":"A256GCM","kid":%q,"typ":%q}`, client, channelTyp)
			iv := sum("limpet test iv: " + tt.name)[:12]
			v.IV = hex.EncodeToString(iv)
			v.Token = sealed(s, derived["jwe"], v.JWEHeader, iv, v.JWT)
		}
		f.Tokens = append(f.Tokens, v)
	}

	token := f.Tokens[0]
	r := &channelRequest{Token: token.Name, Now: channelNow, KeyID: b64url(sum("limpet channel client 1\x00" + client)), Nonce: nonce("request")}
	r.message = message{Method: "POST", Scheme: "https", Authority: host, Path: "/invoices", Query: "draft=1", Body: `{"total":1}`}
	digest := "sha-256=:" + b64(sum(r.Body)) + ":"
	params := fmt.Sprintf(`("@method" "@authority" "@path" "@query" "content-digest" "authorization");created=%d;nonce=%q;keyid=%q;alg="hmac-sha256";tag="limpet"`,
		r.Now, r.Nonce, r.KeyID)
	r.Base = []string{`"@method": POST`, `"@authority": ` + host, `"@path": /invoices`, `"@query": ?draft=1`, `"content-digest": ` + digest,
		`"authorization": Bearer ` + token.Token, `"@signature-params": ` + params}
	r.Input = "limpet=" + params
	r.Signature = "limpet=:" + b64(mac(unhex(t, token.Derived["request"]), []byte(strings.Join(r.Base, "\n")))) + ":"
	r.Fields = []field{{"Authorization", "Bearer " + token.Token}, {"Content-Digest", digest}, {"Signature-Input", r.Input}, {"Signature", r.Signature}}
	f.Request = r

	for _, exported := range []string{"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", strings.Repeat("aa", 32)} {
		v := &channelSample{Name: "exported " + exported[:6], Client: "client1", Secret: hex.EncodeToString([]byte("my_api_key")), Exported: exported}
		secret, ekm := unhex(t, v.Secret), unhex(t, exported)
		tag := mac(secret, append(append(make([]byte, 4), ekm...), 0, 0, 1, 0))
		v.Tag, v.TokenText = hex.EncodeToString(tag), b64(tag)
		key := mac(secret, ekm)
		v.Key = hex.EncodeToString(key)
		v.JWT = b64url([]byte(`{"alg":"HS256"}`)) + "." + b64url([]byte(`{"iss":"issuer","sub":"subject"}`))
		v.JWT += "." + b64url(mac(key, []byte(v.JWT)))
		iv := sum("limpet test iv: " + v.Name)[:12]
		v.IV = hex.EncodeToString(iv)
		v.JWE = sealed(s, key, `{"alg":"dir","cty":"JWT","enc":"A256GCM","kid":"client1","typ":"JWT"}`, iv, v.JWT)
		f.Sample = append(f.Sample, v)
	}
	return f
}

// The known answers of the sample's own programs.
func TestChannelSampleAnswers(t *testing.T) {
	f := new(channelFile)
	read(t, "channel.json", f)
	for i, want := range [][2]string{
		{"a98b90faac05e6f6e94fb26099ccdbee990891cb4d5629047178ae6bb8ec3cac", "9510ef14dbf6aa4e588cccaa3b8d0277690785d35238d3daa47b3e5aca31ee01"},
		{"6682306fb365ed0a1c005b58546261395f8a51d980b808ab9038c9ef9328ecf9", "b3eb2fac80d35a3f1367f1468ded9e1097164adc89f3538918e42826189e3143"},
	} {
		if got := [2]string{f.Sample[i].Tag, f.Sample[i].Key}; got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}
