package storage

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"pitr/internal/hint"
)

const (
	swiftDialTimeout     = 15 * time.Second
	swiftAnswerTimeout   = 90 * time.Second // from the end of a request to the answer's headers
	swiftStallTimeout    = 60 * time.Second // without a byte on a connection that something is waited for on
	swiftContinueTimeout = 2 * time.Second  // for the word to go on with a large body
	swiftCommitGrace     = 10 * time.Second // for the answer to what has been sent in full, when the context has ended
	swiftIdleConns       = 32
)

// swiftClient makes the HTTP client of one bucket. It has no time limit on a whole request, which may be large, but on each
// step of it.
func swiftClient(caFile string) (*http.Client, error) {
	var conf *tls.Config
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, hint.Wrap(fmt.Errorf("%s holds no certificate", caFile), "write the certificate of the authority there, as PEM")
		}
		conf = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	dialer := &net.Dialer{Timeout: swiftDialTimeout}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return swiftConn{c}, nil
		},
		TLSClientConfig:       conf,
		TLSHandshakeTimeout:   swiftDialTimeout,
		ResponseHeaderTimeout: swiftAnswerTimeout,
		ExpectContinueTimeout: swiftContinueTimeout,
		IdleConnTimeout:       swiftStallTimeout / 2,
		MaxIdleConnsPerHost:   swiftIdleConns,
		DisableCompression:    true, // lengths and ranges count the bytes as they are stored
	}
	return &http.Client{
		Transport: t,
		// A redirect would carry the token to another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// swiftConn is a connection on which nothing may stall. A write puts off the end of the wait for the answer too, since
// that is waited for all the while something is sent.
type swiftConn struct{ net.Conn }

func (c swiftConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(swiftAnswerTimeout + swiftStallTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c swiftConn) Write(p []byte) (int, error) {
	now := time.Now()
	if err := c.SetWriteDeadline(now.Add(swiftStallTimeout)); err != nil {
		return 0, err
	}
	if err := c.SetReadDeadline(now.Add(swiftAnswerTimeout + swiftStallTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// swiftRequest is a request to the container, or to an object in it. The body can be sent more than once.
type swiftRequest struct {
	method  string
	name    string // of the object; empty: the container
	account bool   // neither, but the account
	query   url.Values
	header  http.Header
	body    *swiftBuffer // nil: none
	// commit: when the context ends, and the body is out, the answer is waited for a little longer: then it is known
	// whether the object is there.
	commit bool
}

// do sends the request, with a new token if the server no longer takes the old one, and returns the answer, whatever it
// says. Its body must be closed.
func (s *swift) do(ctx context.Context, r swiftRequest) (*http.Response, error) {
	t, err := s.authorise(ctx, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.send(ctx, t, r)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	swiftDrain(resp)
	if t, err = s.authorise(ctx, t); err != nil {
		return nil, err
	}
	return s.send(ctx, t, r)
}

func (s *swift) send(ctx context.Context, t *swiftToken, r swiftRequest) (*http.Response, error) {
	target := t.url
	if !r.account {
		target += "/" + url.PathEscape(s.container)
		if r.name != "" {
			target += "/" + swiftEscape(r.name)
		}
	}
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	reqCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	out := &swiftOut{over: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() {
		if r.commit && out.sent.Load() {
			select {
			case <-time.After(swiftCommitGrace):
			case <-reqCtx.Done():
			}
		}
		cancel()
	})
	end := func() { stop(); cancel() }
	body := func() (io.ReadCloser, error) {
		if r.body == nil || r.body.size == 0 {
			out.sent.Store(true)
			return http.NoBody, nil
		}
		out.begin()
		return io.NopCloser(&swiftSending{ctx: ctx, r: r.body.reader(), left: r.body.size, out: out}), nil
	}
	sending, _ := body()
	req, err := http.NewRequestWithContext(out.trace(reqCtx), r.method, target, sending)
	if err != nil {
		end()
		return nil, err
	}
	if r.header != nil {
		req.Header = r.header.Clone()
	}
	req.Header.Set("User-Agent", "pitr")
	req.Header.Set("X-Auth-Token", t.token)
	if r.body != nil {
		req.ContentLength, req.GetBody = r.body.size, body
		if r.body.size > swiftChunk {
			req.Header.Set("Expect", "100-continue") // a refusal comes before the body goes out
		}
	}
	if !r.commit {
		// May be sent again on another connection, when one that lay idle proves dead. The header itself is not sent.
		req.Header["Idempotency-Key"] = []string{}
	}
	resp, err := s.client.Do(req)
	close(out.over)
	if err != nil {
		end()
		return nil, s.unreachable(ctx, err)
	}
	resp.Body = &swiftAnswer{resp.Body, end}
	if r.method == http.MethodHead && resp.StatusCode >= 300 && resp.ContentLength < 0 {
		// Swift sends the end of a body with it. The connection must not serve for the next request.
		s.client.CloseIdleConnections()
	}
	return resp, nil
}

// swiftEscape writes an object's name for a URL.
func swiftEscape(name string) string {
	return strings.ReplaceAll(url.PathEscape(name), "%2F", "/")
}

// swiftAnswer frees, when it is closed, what its request held.
type swiftAnswer struct {
	io.ReadCloser
	end func()
}

func (a *swiftAnswer) Close() error {
	err := a.ReadCloser.Close()
	a.end()
	return err
}

// swiftDrain reads what little is left of an answer, so that the connection serves again, and closes it.
func swiftDrain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
}

// unreachable explains why a request got no answer.
func (s *swift) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // without the URL
	}
	var (
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		dns       *net.DNSError
	)
	switch {
	case errors.As(err, &authority):
		return hint.Wrap(err, "name the certificate of the server's authority in storage.swift.ca_file")
	case errors.As(err, &host):
		return hint.Wrap(err, "use the host name that the certificate is for in storage.swift.auth_url, and in the server's catalogue")
	case errors.As(err, &invalid):
		return hint.Wrap(err, "look whether this machine's clock is right, and whether the server's certificate has expired")
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return hint.Wrap(err, "the server does not speak TLS there: look at http and https, and the port, in storage.swift.auth_url")
	case errors.As(err, &dns) && dns.IsNotFound:
		return hint.Wrap(err, "look at the host's name in storage.swift.auth_url, and at the name servers of this machine")
	}
	// Its text alone: time limits of the connection match context.DeadlineExceeded, but the caller's context has not ended.
	return MarkTemporary(hint.Wrap(errors.New(err.Error()), "the server of %s could not be reached, or the connection broke: look at it, at the network, and at proxies in the environment", s))
}
