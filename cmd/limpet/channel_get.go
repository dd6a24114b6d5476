package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptrace"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/channel"
	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
	"github.com/limpet-auth/limpet/keyring"
)

type channelGet struct {
	call       call
	client     string
	key        string
	secretFile string
	profile    string
	form       string
	perRequest bool
	caCert     string
	http1      bool
	verbose    bool
	keeper     keeper
}

func channelGetCommand() *cobra.Command {
	var g channelGet
	cmd := &cobra.Command{
		Use:   "get URL",
		Short: "make a request with a token of its connection",
		Long: `Get sends one HTTPS request with a token that works on its TLS connection only, and
writes the body of the answer to standard output. Most of its flags are those of
curl. Redirects are not followed.

The client's key is one of limpet key list, by its ID: a secret that limpet tpm
import-hmac put into the TPM, or a key pair that limpet key create made. It can also
be a TSS2 PEM file with a secret that limpet or tpm2-tools wrote, or, without a TPM,
a file with the secret itself.

  limpet channel get --client billing --key ID https://api.example.com/orders
  limpet channel get --client billing --key billing.pem -d @order.json https://api.example.com/orders
  limpet channel get --client billing --secret-file secret --cacert cert.pem -v https://localhost:8443/

` + secretHelp + `

--form says what the token looks like: jwt and jwe are for servers that have
libraries for those. A key pair has no jwe. --per-request covers the method, host,
path, query and body of the request with a MAC of its own. --verbose tells on
standard error what the connection is like and which key was used, never a secret
or token.

If the server answers with a status of 400 or above, the body is written and the
exit code is 22. If TLS does not end at the server but at something between, no
token holds; then get says so, and the exit code is 1.`,
		Args: exactly(1, "one URL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			g.call.hasData = cmd.Flags().Changed("data")
			return g.run(cmd.Context(), args[0])
		},
	}
	f := cmd.Flags()
	f.StringVar(&g.client, "client", "", "`ID` of the client, as the server knows it")
	f.StringVar(&g.key, "key", "", "the client's key: an `ID` of limpet key list, or a TSS2 PEM file")
	f.StringVar(&g.secretFile, "secret-file", "", "`file` with the client's secret, - for standard input")
	profileFlag(cmd, &g.profile)
	choiceVar(cmd, &g.form, "form", "what the token looks like", formWords...)
	yesNoVar(cmd, &g.perRequest, "per-request", "cover the request with a MAC of its own")
	f.StringVar(&g.caCert, "cacert", "", "`file` with the certificates to trust, in PEM (default: the system's)")
	f.BoolVar(&g.http1, "http1.1", false, "use HTTP/1.1, not HTTP/2")
	f.BoolVarP(&g.verbose, "verbose", "v", false, "say what the connection is like, and which key was used")
	g.call.flags(cmd)
	g.keeper.flags(cmd)
	settings(cmd, "client", "profile", "form", "per-request", "cacert")
	return cmd
}

func (g *channelGet) run(ctx context.Context, target string) error {
	if g.client == "" || (g.key == "") == (g.secretFile == "") {
		return usage("get needs --client, and one of --key and --secret-file")
	}
	if err := keyring.CheckID(g.client); err != nil {
		return &usageError{err}
	}
	if g.perRequest && g.profile == "sample" {
		return usage("profile sample has no MACs per request")
	}
	if g.secretFile == "-" && g.call.data == "@-" {
		return usage("--secret-file and --data cannot both be standard input")
	}
	var t traced
	req, err := g.call.build(t.in(ctx), target)
	if err != nil {
		return err
	}
	if req.URL.Scheme != "https" {
		return usage("%s has no TLS connection that a token could be for: use https", req.URL.Scheme)
	}
	if len(req.Header["Authorization"]) > 0 && (g.perRequest || g.profile == "sample" && g.form != "token") {
		return usage("the token is the Authorization header")
	}
	base, err := g.transport()
	if err != nil {
		return err
	}
	key, err := g.open(ctx)
	if err != nil {
		return getError(err)
	}
	defer key.close()
	transport, err := channel.NewTransport(channel.Config{ID: g.client, HMAC: key.hmac, Key: key.pair, Profile: profiles[g.profile],
		Form: forms[g.form], PerRequest: g.perRequest, Base: base})
	if err != nil {
		return err
	}
	resp, err := newHTTPClient(transport).Do(req)
	if g.verbose {
		g.tell(t.last(), key)
	}
	if err != nil {
		return getError(withoutURL(err))
	}
	err = g.call.answer(resp)
	if err != nil && resp.StatusCode == http.StatusUnauthorized {
		err = withHint(err, "is the client known there, with this key, and are --profile, --form and --per-request as the server wants them? its log says why")
	}
	return err
}

// getError says what can be done about an error.
func getError(err error) error {
	switch {
	case errors.Is(err, channel.ErrTLSElsewhere):
		err = withHint(err, "reach the server past the proxy, or have the proxy pass TLS through to it")
	case errors.Is(err, hwkey.ErrLost):
		err = withHint(err, "give the client a new key: limpet channel keys rotate, at the server")
	case errors.As(err, new(x509.UnknownAuthorityError)):
		err = withHint(err, "--cacert names the certificate of a server that vouches for itself")
	}
	return fmt.Errorf("get: %w", err)
}

func (g *channelGet) transport() (*http.Transport, error) {
	t := newTransport()
	t.TLSClientConfig = new(tls.Config)
	if g.http1 {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP1(true)
	}
	if g.caCert == "" {
		return t, nil
	}
	var err error
	t.TLSClientConfig.RootCAs, err = readRoots(g.caCert)
	return t, err
}

// readRoots reads certificates to trust.
func readRoots(path string) (*x509.CertPool, error) {
	text, err := readBounded(path, maxCACert)
	if err != nil {
		return nil, fmt.Errorf("cacert: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("cacert: %s has no certificate in PEM", path)
	}
	return roots, nil
}

const maxCACert = 4 << 20 // bytes of a file with certificates

// clientKey is the key of a client: a secret or a key pair.
type clientKey struct {
	hmac     hwkey.HMACKey
	pair     hwkey.Key
	where    string // it was taken from
	commands func() map[string]int
	close    func()
}

func (k *clientKey) info() hwkey.Info {
	if k.hmac != nil {
		return k.hmac.Info()
	}
	return k.pair.Info()
}

// open returns the client's key.
func (g *channelGet) open(ctx context.Context) (*clientKey, error) {
	switch {
	case g.secretFile != "":
		secret, err := readShared(g.secretFile)
		if err != nil {
			return nil, err
		}
		return &clientKey{hmac: &bareSecret{keyring.Key{Secret: secret}}, where: g.secretFile, close: func() { clear(secret) }}, nil
	case isFile(g.key):
		return g.keeper.openFile(ctx, g.key)
	}
	ks, info, err := g.keeper.find(ctx, g.key)
	if err != nil {
		return nil, err
	}
	k := &clientKey{where: info.ID, close: func() { closeKeystore(ks) }}
	if tpm, ok := ks.(*tpmkey.Keystore); ok {
		k.commands = tpm.Commands
	}
	if info.Algorithm == hwkey.HMACSHA256 {
		k.hmac, err = loadHMAC(ctx, ks, info.ID)
	} else {
		err = g.fitPair(info)
		if err == nil {
			k.pair, err = ks.Load(ctx, info.ID)
		}
	}
	if err != nil {
		closeKeystore(ks)
		return nil, err
	}
	return k, nil
}

// fitPair refuses a key pair for what takes a secret.
func (g *channelGet) fitPair(info hwkey.Info) error {
	switch {
	case info.Algorithm != hwkey.ECDSAP256:
		return fmt.Errorf("the key is of algorithm %s, and get uses %s and %s", info.Algorithm, hwkey.HMACSHA256, hwkey.ECDSAP256)
	case g.form == "jwe":
		return usage("form jwe takes a secret, and the key is a key pair")
	case g.perRequest:
		return usage("--per-request takes a secret, and the key is a key pair")
	case g.profile == "sample":
		return usage("profile sample takes a secret, and the key is a key pair")
	}
	return nil
}

// openFile returns the secret in a TSS2 PEM file.
func (k *keeper) openFile(ctx context.Context, path string) (*clientKey, error) {
	pem, err := readBounded(path, maxKeyFile)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	ks := tpmkey.New(k.tpmConfig())
	key, err := ks.OpenHMAC(ctx, pem)
	if err != nil {
		ks.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &clientKey{hmac: key, where: path, commands: ks.Commands, close: func() { ks.Close() }}, nil
}

// bareSecret is a secret that nothing keeps.
type bareSecret struct{ key keyring.Key }

func (s *bareSecret) HMAC(ctx context.Context, message []byte) ([]byte, error) {
	return s.key.HMAC(ctx, message)
}

func (s *bareSecret) Info() hwkey.Info {
	return hwkey.Info{Level: hwkey.Software, Detail: "plain file", Algorithm: hwkey.HMACSHA256, Imported: true}
}

func (s *bareSecret) Close() error { return nil }

// traced remembers what the TLS connections of a request are like.
type traced struct {
	mu    sync.Mutex
	state *tls.ConnectionState
}

func (t *traced) in(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{TLSHandshakeDone: func(state tls.ConnectionState, err error) {
		if err == nil {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.state = &state
		}
	}})
}

// last returns the last one, nil if there was none.
func (t *traced) last() *tls.ConnectionState {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state
}

// tell writes what --verbose promises.
func (g *channelGet) tell(state *tls.ConnectionState, key *clientKey) {
	w := tabwriter.NewWriter(os.Stderr, 0, 0, 2, ' ', 0)
	line := func(what, format string, args ...any) {
		fmt.Fprintf(w, "* %s\t%s\n", what, fmt.Sprintf(format, args...))
	}
	if state != nil {
		line("tls", "%s", tls.VersionName(state.Version))
		line("cipher suite", "%s", tls.CipherSuiteName(state.CipherSuite))
		line("key exchange", "%s", state.CurveID)
		line("protocol", "%s", map[bool]string{true: "h2", false: "http/1.1"}[state.NegotiatedProtocol == "h2"])
		line("connection", "%s", channel.Fingerprint(state))
	}
	info := key.info()
	line("client", "%s", g.client)
	line("key", "%s", key.where)
	origin := ""
	if info.Imported && info.Level == hwkey.Hardware {
		origin = "; imported, so others may have the secret"
	}
	line("level", "%s, in %s%s", info.Level, keepers[info.Detail], origin)
	line("algorithm", "%s", info.Algorithm)
	line("form", "%s, of profile %s", g.form, g.profile)
	if g.perRequest {
		line("request", "has a MAC of its own")
	}
	if key.commands != nil {
		line("tpm commands", "%s", counted(key.commands()))
	}
	w.Flush()
}

// keepers says in words what keeps a key, by hwkey.Info.Detail.
var keepers = map[string]string{"tpm2": "the TPM", "file": "an encrypted file", "plain file": "a plain file"}

// counted writes down how often what was done.
func counted(times map[string]int) string {
	list := make([]string, 0, len(times))
	for _, name := range slices.Sorted(maps.Keys(times)) {
		list = append(list, fmt.Sprintf("%s %d", name, times[name]))
	}
	return strings.Join(list, ", ")
}
