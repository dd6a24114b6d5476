package client_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet/client"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

// An answer that makes no sense is an error that says which part of it, leaves
// nothing open, and does no harm to the next request.
func TestGarbageAnswer(t *testing.T) {
	up := newLongServer("x-rpc-sec-bound-token-")
	spoil := func(http.Header) {}
	var body *closing
	keys := newKeystore()
	c := &http.Client{Transport: hwSign(keys).Transport(roundTripper(func(r *http.Request) (*http.Response, error) {
		resp, err := direct{up}.RoundTrip(r)
		if err == nil {
			spoil(resp.Header)
			body = &closing{Reader: resp.Body}
			resp.Body = body
		}
		return resp, err
	}))}
	token := loginLong(t, c, origin)
	names := hwsign.BoundToken
	for want, f := range map[string]func(http.Header){
		"not base64":        func(h http.Header) { h.Set(names.EphemeralKey, "%%%") },
		"not a point":       func(h http.Header) { h.Set(names.EphemeralKey, "BA"+strings.Repeat("A", 85)) },
		"half":              func(h http.Header) { h.Del(names.EphemeralKey) },
		"over 2 KiB":        func(h http.Header) { h.Set(names.EphemeralID, strings.Repeat("x", 1<<20)) },
		"occurs twice":      func(h http.Header) { h.Add(names.EphemeralKey, "AAAA") },
		"time in seconds":   func(h http.Header) { h.Set(names.EphemeralExpire, "9999-12-31") },
		"over before":       func(h http.Header) { h.Set(names.EphemeralExpire, "17") },
		"Accel-Pub-Expire ": func(h http.Header) { h.Set(names.EphemeralExpire, "99999999999999999999") },
	} {
		spoil = f
		_, err := c.Do(request(t, "GET", origin+"/authenticated", token, nil))
		if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 300 {
			t.Errorf("error %v, want one with %q", err, want)
		}
		if !body.closed {
			t.Errorf("%s: the body was not closed", want)
		}
	}
	spoil = func(http.Header) {}
	want(t, c, request(t, "GET", origin+"/authenticated", token, nil), 200, "")
	if n := keys.signs.Load(); n != 1 {
		t.Errorf("%d signatures of the device key, want 1", n)
	}
}

func TestReason(t *testing.T) {
	for _, tc := range []struct {
		code      int
		challenge []string
		body      string
		want      string
	}{
		{401, []string{`Limpet error="key_unknown"`}, "", "key_unknown"},
		{401, []string{`Basic realm="x"`, `Bearer, Limpet error="proof_invalid", x="y"`}, "", "proof_invalid"},
		{403, nil, `{"message":"m","reason":"level_too_low"}`, "level_too_low"},
		{401, nil, `{"message":"unauthorized"}`, ""},
		{401, nil, `{"reason":7}`, ""},
		{401, []string{`Bearer error="invalid_token"`}, "no", ""},
		{200, nil, `{"reason":"x"}`, ""},
		{500, nil, "", ""},
	} {
		resp := &http.Response{StatusCode: tc.code, Header: http.Header{"Www-Authenticate": tc.challenge},
			Body: &closing{Reader: strings.NewReader(tc.body)}}
		for range 2 {
			if got := client.Reason(resp); string(got) != tc.want {
				t.Errorf("%+v: %q", tc, got)
			}
		}
		if got := read(t, resp); got != tc.body {
			t.Errorf("the body is %q, want %q", got, tc.body)
		}
	}
	if client.Reason(&http.Response{StatusCode: 401}) != "" {
		t.Error("a reason out of nothing")
	}
}
