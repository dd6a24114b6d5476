package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

type request struct {
	call   call
	user   string
	keeper keeper
}

// call is an HTTP request as flags like curl's describe it.
type call struct {
	method  string
	data    string
	hasData bool
	headers []string
	output  string
	include bool
}

const maxData = 64 << 20 // bytes of a request's body, which is kept to be sent again

func requestCommand() *cobra.Command {
	var r request
	cmd := &cobra.Command{
		Use:   "request URL",
		Short: "make a request that proves possession of the device key",
		Long: `Request sends one HTTP request in the session that limpet login made at the
URL's server, and writes the body of the answer to standard output. Its flags
are those of curl. Redirects are not followed.

  limpet request https://auth.example.com/authenticated
  limpet request -X DELETE https://auth.example.com/things/7
  limpet request -d @order.json -H 'Content-Type: application/json' https://auth.example.com/orders

If the server answers with a status of 400 or above, the body is written and the
exit code is 22.`,
		Args: exactly(1, "one URL"),
		RunE: func(cmd *cobra.Command, args []string) error { return r.run(cmd, args[0]) },
	}
	r.call.flags(cmd)
	cmd.Flags().StringVar(&r.user, "user", "", "user `name`, if several are logged in at the server (default: the latest)")
	settings(cmd, "user")
	r.keeper.flags(cmd)
	return cmd
}

func (c *call) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&c.method, "request", "X", "", "`method` (default GET, or POST with -d)")
	f.StringVarP(&c.data, "data", "d", "", "`body`; @FILE takes it from a file as it is, @- from standard input")
	f.StringArrayVarP(&c.headers, "header", "H", nil, "header line, as `'Name: value'`; can be repeated")
	f.StringVarP(&c.output, "output", "o", "", "`file` to write the body to")
	f.BoolVarP(&c.include, "include", "i", false, "write the status line and headers too")
}

func (r *request) run(cmd *cobra.Command, target string) error {
	ctx := cmd.Context()
	r.call.hasData = cmd.Flags().Changed("data")
	req, err := r.call.build(ctx, target)
	if err != nil {
		return err
	}
	if len(req.Header["Authorization"]) > 0 {
		return usage("the session's token is the Authorization header")
	}
	state, err := stateDir()
	if err != nil {
		return err
	}
	r.keeper.dir = state
	s, err := findSession(state, origin(req.URL), r.user)
	if err != nil {
		return err
	}
	c, closeClient, err := s.open(ctx, &r.keeper)
	if err != nil {
		return err
	}
	defer closeClient()
	req.Header.Set("Authorization", "Bearer "+s.Token)
	resp, err := c.Do(req)
	if err != nil {
		return fmt.Errorf("request: %w", withoutURL(err))
	}
	return r.call.answer(resp)
}

// answer writes the answer, and fails if its status is 400 or above.
func (c *call) answer(resp *http.Response) error {
	defer resp.Body.Close()
	failure := error(nil)
	if resp.StatusCode >= 400 {
		failure = &httpError{refused(resp)} // before the body is read
	}
	if err := c.write(resp); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return failure
}

func (c *call) build(ctx context.Context, target string) (*http.Request, error) {
	u, err := serverURL(target)
	if err != nil {
		return nil, err
	}
	method, body := c.method, []byte(c.data)
	if method == "" {
		method = http.MethodGet
		if c.hasData {
			method = http.MethodPost
		}
	}
	if path, ok := strings.CutPrefix(c.data, "@"); ok {
		if body, err = readBounded(path, maxData); err != nil {
			return nil, fmt.Errorf("data: %w", err)
		}
	}
	var reader io.Reader
	if c.hasData {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), reader)
	if err != nil {
		return nil, usage("%.40q is not a method", method)
	}
	if c.hasData {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.Header.Set("User-Agent", "limpet/"+versionText())
	seen := make(map[string]bool)
	for _, line := range c.headers {
		name, value, ok := strings.Cut(line, ":")
		if name = http.CanonicalHeaderKey(strings.TrimSpace(name)); !ok || name == "" {
			return nil, usage("-H wants 'Name: value'")
		}
		switch value = strings.TrimSpace(value); {
		case name == "Host":
			req.Host = value
		case seen[name]:
			req.Header.Add(name, value)
		default:
			req.Header.Set(name, value)
			seen[name] = true
		}
	}
	return req, nil
}

// write writes the answer to where the user wants it.
func (c *call) write(resp *http.Response) (err error) {
	out := os.Stdout
	if c.output != "" && c.output != "-" {
		if out, err = os.Create(c.output); err != nil {
			return err
		}
		defer func() {
			if cerr := out.Close(); err == nil {
				err = cerr
			}
		}()
	}
	if c.include {
		fmt.Fprintf(out, "%s %s\r\n", resp.Proto, resp.Status)
		resp.Header.Write(out)
		fmt.Fprint(out, "\r\n")
	}
	_, err = io.Copy(out, resp.Body)
	return err
}

// httpError is an answer with a status of 400 or above.
type httpError struct{ error }

func (e *httpError) Unwrap() error { return e.error }
