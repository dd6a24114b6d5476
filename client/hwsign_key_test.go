package client

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// goodKey is the server's half of an agreement as text.
func goodKey(tb testing.TB) string {
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())
}

func answerOf(id, key, expire, date string) http.Header {
	n, h := hwsign.BoundToken, http.Header{}
	for name, v := range map[string]string{n.EphemeralID: id, n.EphemeralKey: key, n.EphemeralExpire: expire, "Date": date} {
		if v != "" {
			h.Set(name, v)
		}
	}
	return h
}

func TestParseAnswer(t *testing.T) {
	key := goodKey(t)
	raw, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		t.Fatal(err)
	}
	raw[64] ^= 1
	offCurve := base64.StdEncoding.EncodeToString(raw)
	at := func(d time.Duration) string { return strconv.FormatInt(noon.Add(d).Unix(), 10) }
	hourAgo := noon.Add(-time.Hour).Format(http.TimeFormat)
	twice := answerOf("id", key, "", "")
	twice.Add(hwsign.BoundToken.EphemeralID, "other")
	for name, tc := range map[string]struct {
		h    http.Header
		life time.Duration // 0 if there is no answer
		err  string
	}{
		"nothing":             {h: http.Header{}},
		"no id":               {h: answerOf("", key, at(time.Minute), "")},
		"no expiry":           {h: answerOf("id", key, "", ""), life: defaultLife},
		"signing key":         {h: answerOf("id", "", at(time.Minute), ""), life: 59 * time.Second},
		"unpadded":            {h: answerOf("id", strings.TrimRight(key, "="), "", ""), life: defaultLife},
		"our clock":           {h: answerOf("id", key, at(15*time.Minute), ""), life: 15*time.Minute - time.Second},
		"the server's clock":  {h: answerOf("id", key, at(-45*time.Minute), hourAgo), life: 15*time.Minute - time.Second},
		"bad date":            {h: answerOf("id", key, at(15*time.Minute), "x"), life: 15*time.Minute - time.Second},
		"one second":          {h: answerOf("id", key, at(time.Second), ""), life: time.Second / 2},
		"a century":           {h: answerOf("id", key, at(100*365*24*time.Hour), ""), life: maxLife - time.Second},
		"over already":        {h: answerOf("id", key, at(0), ""), err: "over before"},
		"1970":                {h: answerOf("id", key, "0", ""), err: "over before"},
		"expiry is no number": {h: answerOf("id", key, "soon", ""), err: "Expire"},
		"expiry is negative":  {h: answerOf("id", key, "-1", ""), err: "Expire"},
		"expiry overflows":    {h: answerOf("id", key, strings.Repeat("9", 30), ""), err: "Expire"},
		"expiry in the sky":   {h: answerOf("id", key, "9223372036854775807", ""), err: "Expire"},
		"bad base64":          {h: answerOf("id", "!!!", "", ""), err: "base64"},
		"off the curve":       {h: answerOf("id", offCurve, "", ""), err: "point"},
		"short key":           {h: answerOf("id", "AAAA", "", ""), err: "key"},
		"huge id":             {h: answerOf(strings.Repeat("i", 1<<20), key, "", ""), err: "2 KiB"},
		"huge key":            {h: answerOf("id", strings.Repeat("A", 1<<20), "", ""), err: "2 KiB"},
		"two ids":             {h: twice, err: "twice"},
	} {
		a, err := parseAnswer(tc.h, &hwsign.BoundToken, noon, 0)
		switch {
		case tc.err != "":
			if err == nil || !strings.Contains(err.Error(), tc.err) || len(err.Error()) > 200 {
				t.Errorf("%s: error %v, want one with %q", name, err, tc.err)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.life == 0 && a != nil, tc.life != 0 && (a == nil || a.life != tc.life || a.id != "id"):
			t.Errorf("%s: %+v, want %v", name, a, tc.life)
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	key := goodKey(f)
	f.Add("id", key, "1772366400", "Sun, 01 Mar 2026 12:00:00 GMT")
	f.Add("id", "", "", "")
	f.Add("", "!", "-9223372036854775808", "x")
	f.Fuzz(func(t *testing.T, id, key, expire, date string) {
		a, err := parseAnswer(answerOf(id, key, expire, date), &hwsign.BoundToken, noon, 0)
		if err != nil || a == nil {
			if a != nil && err != nil {
				t.Error("both an answer and an error")
			}
			return
		}
		if a.id != id || a.life <= 0 || a.life > maxLife {
			t.Errorf("id %q, life %v", a.id, a.life)
		}
		if a.server != nil && a.server.Algorithm() != proof.HMACSHA256 {
			t.Errorf("server's key is for %v", a.server.Algorithm())
		}
	})
}

// The computer sleeps, or somebody sets its clock.
func TestLeaseClock(t *testing.T) {
	start := time.Now()
	l := &term{start, 10 * time.Minute}
	wall := func(d time.Duration) time.Time { return start.Round(0).Add(d) } // no reading of the process's clock
	for _, tc := range []struct {
		now         time.Time
		renew, over bool
	}{
		{start, false, false},
		{start.Add(7 * time.Minute), false, false},
		{start.Add(8 * time.Minute), true, false},
		{start.Add(10 * time.Minute), true, true},
		{wall(time.Hour), true, true},
		{wall(-time.Hour), false, false},
	} {
		if renew, over := l.over(tc.now, 4), l.over(tc.now, 5); renew != tc.renew || over != tc.over {
			t.Errorf("at %v: renew %v, over %v", tc.now.Sub(start), renew, over)
		}
	}
}

func TestOrigin(t *testing.T) {
	for in, want := range map[string]string{
		"https://App.Example.com/x?y":     "https://app.example.com",
		"HTTPS://app.example.com:443":     "https://app.example.com",
		"https://app.example.com:8443/":   "https://app.example.com:8443",
		"http://app.example.com:80/":      "http://app.example.com",
		"http://app.example.com:443/":     "http://app.example.com:443",
		"http://user:pass@[::1]:8080/":    "http://[::1]:8080",
		"https://app.example.com.:443/":   "https://app.example.com.",
		"https://app.example.com@evil.x/": "https://evil.x",
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := originOf(u); got != want {
			t.Errorf("origin of %s: %s, want %s", in, got, want)
		}
	}
}

func TestClientDoesNotPrint(t *testing.T) {
	c := New(nil)
	s := c.newSession("https://app.example.com", "k", HTTPSig)
	s.tokens.Store(&[]tokenHash{hashOf("t")})
	c.add(t.Context(), s)
	var out strings.Builder
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "client", c)
	if !strings.HasSuffix(out.String(), "client.sessions=1\n") {
		t.Error(out.String())
	}
}
