package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	client "github.com/ncw/swift/v2"

	"pitr/internal/hint"
)

// swiftRefusal is an answer that is not a success.
type swiftRefusal struct {
	status int
	text   string
}

func (e *swiftRefusal) Error() string { return e.text }

// refused is the error of an answer that is not a success, with what could be done about it. The answer's body is read.
func (s *swift) refused(resp *http.Response) error {
	text := fmt.Sprintf("the server says %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	kind := resp.Header.Get("Content-Type")
	if body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10)); err == nil && (strings.HasPrefix(kind, "text/plain") || strings.HasPrefix(kind, "application/json")) {
		if line := strings.Join(strings.Fields(string(body)), " "); line != "" {
			text += ": " + line[:min(len(line), 300)]
		}
	}
	if id := resp.Header.Get("X-Trans-Id"); id != "" {
		text += " (transaction " + id + ")"
	}
	return s.refusal(resp.StatusCode, text)
}

// refusal gives an error of the server its hint, and marks what passes by itself.
func (s *swift) refusal(status int, text string) error {
	var err error = &swiftRefusal{status, text}
	switch status {
	case http.StatusUnauthorized:
		return hint.Wrap(err, "the server refuses a token that it has just given to %s: look whether the storage URL in its catalogue belongs to the same cluster and region", s.login.who())
	case http.StatusForbidden:
		return hint.Wrap(err, "%s may not do this: give it a role that may read, write and delete in container %s (such as swiftoperator or member), or let the container's ACLs allow it", s.login.who(), s.container)
	case http.StatusRequestEntityTooLarge:
		return hint.Wrap(err, "a quota of the account or the container may be used up: raise it, or shorten backup.retention and run pitr prune")
	case http.StatusProxyAuthRequired:
		return hint.Wrap(err, "the proxy in the environment ($HTTPS_PROXY, $HTTP_PROXY) wants a user and a password")
	case http.StatusInsufficientStorage:
		return MarkTemporary(hint.Wrap(err, "the disks of the Swift cluster are full or broken: tell its operator"))
	case http.StatusTooManyRequests, 498:
		return MarkTemporary(hint.Wrap(err, "the store asks for fewer requests at a time: lower archive.workers and backup.workers if this goes on"))
	case http.StatusUnprocessableEntity:
		return MarkTemporary(hint.Wrap(err, "what arrived had another checksum than what was sent: if this goes on, look at the network and at this machine's memory"))
	case http.StatusRequestTimeout, http.StatusConflict, 499:
		return MarkTemporary(hint.Wrap(err, "try again"))
	case http.StatusNotImplemented:
		return hint.Wrap(err, "the server, or a proxy before it, does not know this kind of request")
	}
	if status/100 == 5 {
		return MarkTemporary(hint.Wrap(err, "the store has trouble of its own: look at it, or tell its operator the number of the transaction"))
	}
	if status/100 == 3 {
		return hint.Wrap(err, "the server sends on to another place, which is not followed: give the URL that it ends at in storage.swift.auth_url")
	}
	return err
}

// swiftStatus is the status of the answer that err comes from, 0 if it comes from none.
func swiftStatus(err error) int {
	if e, ok := errors.AsType[*swiftRefusal](err); ok {
		return e.status
	}
	return 0
}

// loginFailed explains why there is no token. Some servers send back what they were sent: the secret stays out.
func (s *swift) loginFailed(ctx context.Context, err error, secret string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	l := s.login
	where := fmt.Sprintf("log in at %s as %s", l.url, l.who())
	answer, ok := errors.AsType[*client.Error](err)
	if !ok {
		if to, ok := errors.AsType[swiftRedirected](err); ok {
			return hint.Wrap(fmt.Errorf("%s: %w", where, to), "write that URL into storage.swift.auth_url, if you trust it: pitr does not send passwords on")
		}
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			err = fmt.Errorf("no answer: %s", err.Error())
		}
		if secret != "" && strings.Contains(err.Error(), secret) {
			err = errors.New("an error whose text holds the secret")
		}
		return fmt.Errorf("%s: %w", where, s.unreachable(ctx, err))
	}
	var text string // never what came back
	refusal := func(advice string, args ...any) error {
		return hint.Wrap(fmt.Errorf("%s: %w", where, &swiftRefusal{answer.StatusCode, text}), advice, args...)
	}
	switch answer.StatusCode {
	case 0:
		text = "the answer names no storage URL"
		return refusal("%s", s.noEndpoint())
	case http.StatusUnauthorized:
		text = "the server refuses user or password (401)"
		if l.app != "" || l.appID != "" {
			text = "the server refuses the application credential (401): it, or its secret, is wrong, expired or deleted"
		}
		return refusal("look at %s", s.loginKeys())
	case http.StatusBadRequest:
		text = "the server does not understand the request (400)"
		return refusal("look at %s, and whether storage.swift.auth_url is that of version %d", s.loginKeys(), l.version)
	case http.StatusForbidden:
		text = "the server denies it (403)"
		return refusal("look whether the user is enabled and has a role in its tenant")
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusMultipleChoices, http.StatusGone:
		text = fmt.Sprintf("the server has nothing there (%d)", answer.StatusCode)
		return refusal("look at storage.swift.auth_url, which should be that of version %d of the identity service", l.version)
	}
	return fmt.Errorf("%s: %w", where, s.refusal(answer.StatusCode, fmt.Sprintf("the server says %d %s", answer.StatusCode, http.StatusText(answer.StatusCode))))
}

// loginKeys names the settings that log in.
func (s *swift) loginKeys() string {
	l := s.login
	switch {
	case l.app != "" || l.appID != "":
		return fmt.Sprintf("the application credential in storage.swift (or $OS_APPLICATION_CREDENTIAL_...), and its secret in %s", l.secret)
	case l.version == 1:
		return fmt.Sprintf("storage.swift.username, which is ACCOUNT:USER in version 1 (or $OS_USERNAME, $ST_USER), and the password in %s", l.secret)
	case l.version == 2:
		return fmt.Sprintf("storage.swift.username and tenant (or $OS_USERNAME, $OS_TENANT_NAME), and the password in %s", l.secret)
	}
	return fmt.Sprintf("storage.swift.username, domain, tenant and tenant_domain (or $OS_USERNAME, $OS_USER_DOMAIN_NAME, $OS_PROJECT_NAME, $OS_PROJECT_DOMAIN_NAME), and the password in %s", l.secret)
}

// noEndpoint is the advice where the catalogue has no object store.
func (s *swift) noEndpoint() string {
	switch {
	case s.login.version == 1:
		return "look whether storage.swift.auth_url is that of a Swift server, which ends in /auth/v1.0"
	case s.login.region != "":
		return fmt.Sprintf("its catalogue may have no object store in region %q: look at storage.swift.region (or $OS_REGION_NAME), endpoint_type and tenant", s.login.region)
	}
	return "its catalogue has no object store: look at storage.swift.tenant (or $OS_PROJECT_NAME), without which no catalogue may come, and at endpoint_type"
}
