// Command throughput measures what a guard costs a whole server. It runs a
// bare net/http JSON handler and the same handler behind Guard.Protect, each in
// a process of its own, loads them in turn from this process in two ways, and prints
// the medians of CPU time per request and requests per second, with ratios taken
// round by round. It needs Linux.
package main

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
	"github.com/limpet-auth/limpet/proof/hwsign"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("throughput: ")
	rounds := flag.Int("rounds", 40, "rounds over all servers; at least 6")
	requests := flag.Int("requests", 8_000, "requests a round to the bare and the HMAC server; a quarter of it to those that verify signatures")
	connections := flag.Int("connections", 64, "connections that send at the same time")
	serve := flag.String("serve", "", "be the server of this variant (for this command's own use)")
	issuer := flag.String("issuer", "", "URL of the issuer of access tokens (likewise)")
	flag.Parse()
	if *serve != "" {
		log.Fatal(runServer(*serve, *issuer))
	}
	if *rounds < 6 || *requests < *connections || *connections < 1 {
		log.Fatal("want at least 6 rounds, one connection and a request for each")
	}
	if err := measure(*rounds, *requests, *connections); err != nil {
		log.Fatal(err)
	}
}

// A user has a session of its own, as the users of a real server have.
type user struct {
	scheme, token string

	prove func() http.Header // what the next request carries; nil without proofs
}

// A peer is one server process and the client state to load it with.
type peer struct {
	variant string
	addr    string
	stop    func()
	users   []user
	taken   [len(loads)]samples
}

// samples are what a server took, a round each.
type samples struct {
	cpu  []float64 // µs per request
	rate []float64 // requests per second
}

// loads are the ways to load a server.
var loads = [...]struct {
	client string
	send   func(addr string, batches [][][]byte) error
}{
	{"A client that polls. The server wakes nobody, as it does not wake clients on other machines", polling},
	{"A client that sleeps until its answers come. The server pays for waking it, the more often the slower the server is", sleeping},
}

func measure(rounds, requests, connections int) error {
	var peers []*peer
	tokens, err := newIssuer()
	if err != nil {
		return err
	}
	defer tokens.Close()
	for _, variant := range []string{bare, guardHMAC, guardSignature, bareECDSA, guardECDSA, bareToken, guardDPoP} {
		p, err := start(variant, connections, tokens)
		if err != nil {
			return err
		}
		defer p.stop()
		peers = append(peers, p)
	}
	for round := range rounds + 1 {
		for _, p := range peers {
			n := requests
			switch p.variant {
			case bareECDSA, guardECDSA, bareToken, guardDPoP:
				n /= 4
			}
			for i, load := range loads {
				cpu, elapsed, err := p.load(n, connections, load.send)
				if err != nil {
					return fmt.Errorf("%s: %w", p.variant, err)
				}
				if round == 0 {
					continue // warm-up
				}
				s := &p.taken[i]
				s.cpu = append(s.cpu, cpu.Seconds()*1e6/float64(n))
				s.rate = append(s.rate, float64(n)/elapsed.Seconds())
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round, rounds)
	}
	fmt.Printf("%d rounds, %d connections with a session each, medians.\n", rounds, connections)
	for i, load := range loads {
		fmt.Printf("\n%s:\n\n", load.client)
		fmt.Println("| server | CPU per request, µs | requests/s |")
		fmt.Println("|---|---|---|")
		for _, p := range peers {
			fmt.Printf("| %s | %.1f | %.0f |\n", p.variant, median(p.taken[i].cpu), median(p.taken[i].rate))
		}
		fmt.Println("\n| ratio, round by round | CPU | CPU, best rounds | requests/s |")
		fmt.Println("|---|---|---|---|")
		for _, pair := range [][2]*peer{{peers[1], peers[0]}, {peers[2], peers[0]}, {peers[4], peers[3]}, {peers[6], peers[5]}} {
			a, b := &pair[0].taken[i], &pair[1].taken[i]
			fmt.Printf("| %s / %s | %.2f | %.2f | %.2f |\n", pair[0].variant, pair[1].variant,
				median(ratios(a.cpu, b.cpu)), best(a.cpu)/best(b.cpu), median(ratios(a.rate, b.rate)))
		}
	}
	return nil
}

func ratios(a, b []float64) []float64 {
	r := make([]float64, len(a))
	for i := range a {
		r[i] = a[i] / b[i]
	}
	return r
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// best returns the median of the quarter of rounds that took least, which whatever else
// the machine does has disturbed least.
func best(v []float64) float64 {
	return median(slices.Sorted(slices.Values(v))[:(len(v)+3)/4])
}

var b64 = base64.StdEncoding.EncodeToString

// login binds a session on the server to a new device key and introduces an
// ephemeral key: ECDH if mac, else ECDSA.
func (p *peer) login(token string, mac bool) error {
	device, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ephemeral, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	devicePub, err := device.PublicKey.Bytes()
	if err != nil {
		return err
	}
	ephemeralPub, err := ephemeral.PublicKey.Bytes()
	if err != nil {
		return err
	}
	n := hwsign.BoundToken
	if _, err := p.do("POST", "/login", token, http.Header{n.DeviceKey: {b64(devicePub)}, n.DeviceKeyType: {hwsign.TypeECDSA}}); err != nil {
		return err
	}
	typeName := hwsign.TypeECDSA
	if mac {
		typeName = hwsign.TypeECDHLong
	}
	text, first := b64(ephemeralPub), value()
	answer, err := p.do("GET", "/", token, http.Header{
		n.EphemeralKey: {text}, n.EphemeralType: {typeName}, n.EphemeralSig: {sign(device, text)},
		n.Data: {first}, n.DataSig: {sign(ephemeral, first)},
	})
	if err != nil {
		return err
	}
	id := answer.Get(n.EphemeralID)
	tag := func(value string) string { return sign(ephemeral, value) }
	if mac {
		secret, err := agree(ephemeral, answer.Get(n.EphemeralKey))
		if err != nil {
			return err
		}
		tag = func(value string) string {
			h := hmac.New(sha256.New, secret)
			h.Write([]byte(value))
			return b64(h.Sum(nil))
		}
	}
	p.users = append(p.users, user{"Bearer", token, func() http.Header {
		v := value()
		return http.Header{n.EphemeralID: {id}, n.Data: {v}, n.DataSig: {tag(v)}}
	}})
	return nil
}

// hold binds a session on Limpet's own wire and introduces an ephemeral key.
func (p *peer) hold(token string) error {
	device, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	signer, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), device.Bytes())
	if err != nil {
		return err
	}
	devicePub, err := proof.NewPublicKey(proof.ECDSAP256, signer.Public())
	if err != nil {
		return err
	}
	field, err := httpsig.FormatDevice(devicePub, proof.Software)
	if err != nil {
		return err
	}
	raw := func(message []byte) ([]byte, error) {
		sum := sha256.Sum256(message)
		r, s, err := ecdsa.Sign(rand.Reader, signer, sum[:])
		if err != nil {
			return nil, err
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...), nil
	}
	login := http.Header{httpsig.DeviceField: {field}}
	if err := p.sign(login, "POST", "/login", devicePub, proof.ECDSAP256, raw); err != nil {
		return err
	}
	answer, err := p.do("POST", "/login", token, login)
	if err != nil {
		return err
	}
	server, session, err := httpsig.ParseServer(answer.Get(httpsig.KeyField))
	if err != nil {
		return err
	}
	ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	public, err := proof.ParsePublicKey(proof.HMACSHA256, ephemeral.PublicKey().Bytes())
	if err != nil {
		return err
	}
	now := time.Now()
	d := &proof.Delegation{Algorithm: proof.HMACSHA256, Key: public.Bytes(), Scope: &proof.Scope{
		NotBefore: now, Expires: now.Add(server.Lease), Session: *session, Audience: p.addr, Server: server.Key.ID(),
	}}
	d.Signed = httpsig.Statement(d.Algorithm, d.Key, d.Scope)
	if d.Signature, err = raw(d.Signed); err != nil {
		return err
	}
	z, err := proof.Agree(ephemeral, server.Key)
	if err != nil {
		return err
	}
	mac := proof.NewMACKey(proof.RequestSecret(z, d.Signed, public, server.Key))
	tag := func(message []byte) ([]byte, error) { return mac.Append(nil, message), nil }
	prove := func(path string) (http.Header, error) {
		h := http.Header{"Authorization": {"Bearer " + token}}
		err := p.sign(h, "GET", path, public, proof.HMACSHA256, tag)
		return h, err
	}
	first, err := prove("/")
	if err != nil {
		return err
	}
	first.Set(httpsig.DelegationField, httpsig.FormatDelegation(d))
	if _, err := p.do("GET", "/", token, first); err != nil {
		return err
	}
	p.users = append(p.users, user{"Bearer", token, func() http.Header {
		h, err := prove("/api")
		if err != nil {
			log.Fatal(err)
		}
		h.Del("Authorization") // which every request has
		return h
	}})
	return nil
}

func (p *peer) sign(h http.Header, method, path string, key *proof.PublicKey, alg proof.Algorithm, sign func([]byte) ([]byte, error)) error {
	sum := key.Thumbprint()
	m := &proof.Message{Method: method, Authority: p.addr, Path: path, Header: h}
	return httpsig.Sign(m, &httpsig.Signing{
		KeyID: base64.RawURLEncoding.EncodeToString(sum[:]), Algorithm: alg, Created: time.Now(), Nonce: rand.Text(),
	}, sign)
}

func (p *peer) do(method, path, token string, h http.Header) (http.Header, error) {
	r, err := http.NewRequest(method, "http://"+p.addr+path, nil)
	if err != nil {
		return nil, err
	}
	r.Header = h
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		return nil, fmt.Errorf("%s %s: %s %s", method, path, resp.Status, body)
	}
	return resp.Header, nil
}

func sign(key *ecdsa.PrivateKey, message string) string {
	sum := sha256.Sum256([]byte(message))
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		log.Fatal(err)
	}
	return b64(sig)
}

func agree(own *ecdsa.PrivateKey, server string) ([]byte, error) {
	der, err := base64.StdEncoding.DecodeString(server)
	if err != nil || len(der) < 65 {
		return nil, fmt.Errorf("bad server key")
	}
	pub, err := ecdh.P256().NewPublicKey(der[len(der)-65:])
	if err != nil {
		return nil, err
	}
	key, err := own.ECDH()
	if err != nil {
		return nil, err
	}
	return key.ECDH(pub)
}

func value() string {
	var r [32]byte
	rand.Read(r[:])
	return fmt.Sprintf("%d-%x", time.Now().Unix(), r)
}

// load sends n requests, made beforehand, over some connections and returns
// the CPU time that the server process used for them and the time that passed.
func (p *peer) load(n, connections int, send func(addr string, batches [][][]byte) error) (cpu, elapsed time.Duration, err error) {
	batches := make([][][]byte, connections)
	for i := range n {
		u := p.users[i%connections]
		r := "GET /api HTTP/1.1\r\nHost: " + p.addr + "\r\nUser-Agent: throughput\r\nAccept: application/json\r\nAuthorization: " + u.scheme + " " + u.token + "\r\n"
		if u.prove != nil {
			for name, v := range u.prove() {
				r += name + ": " + v[0] + "\r\n"
			}
		}
		batches[i%connections] = append(batches[i%connections], []byte(r+"\r\n"))
	}
	before, err := p.used()
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	if err := send(p.addr, batches); err != nil {
		return 0, 0, err
	}
	elapsed = time.Since(begin)
	after, err := p.used()
	return after - before, elapsed, err
}

// used asks the server process how much CPU time it has used so far.
func (p *peer) used() (time.Duration, error) {
	resp, err := http.Get("http://" + p.addr + "/cpu")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	return time.ParseDuration(strings.TrimSpace(string(b)))
}
