package storage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"

	"pitr/internal/hint"
)

const (
	swiftURLHint = "swift://CONTAINER/PREFIX"

	// swiftSegments is where, below the prefix of the URL, the segments of large objects lie: no key begins with a dot, and
	// listings leave it out. swiftBehindSegments comes right behind all of them in byte order, and is no key either.
	swiftSegments       = ".segments/"
	swiftBehindSegments = ".segments0"

	// swiftMaxPrefix is how long the prefix may be so that the names of segments, which hold prefix and key, stay within
	// the 1,024 bytes that Swift allows (max_object_name_length).
	swiftMaxPrefix    = 200
	swiftMaxContainer = 256 // bytes: max_container_name_length
)

// swift is a bucket in a container of an OpenStack Swift account. The object KEY is the object PREFIX/KEY, in one piece
// where it is small, else a static large object: a manifest under that name, which is put last and by that makes the object
// visible, and segments under PREFIX/.segments/KEY/UPLOAD/.
//
// Of ncw/swift it uses the ways to log in. The requests are its own, since that library deletes a large object before it
// writes it anew, tries again by itself, and on a time-out leaves a goroutine behind that goes on reading the content.
//
// Swift cannot create exclusively: If-None-Match refuses a name that is taken, but of writers who begin at the same time
// several pass, and the last wins. Listings and answers from lagging replicas can be behind. Both is declared.
type swift struct {
	container string
	prefix    string // of all names; empty or ending in "/"
	policy    string
	login     swiftLogin
	client    *http.Client

	token swiftTokens
	// seen: the container has been there, so that it has vanished if it is not.
	seen atomic.Bool
	// noBulk: the server has not the middleware for bulk deletes.
	noBulk atomic.Bool
	chunks swiftChunks
}

func openSwift(u *url.URL, c SwiftConfig) (Bucket, error) {
	login, err := c.login()
	if err != nil {
		return nil, fmt.Errorf("storage.%w", err)
	}
	client, err := swiftClient(c.caFile())
	if err != nil {
		return nil, fmt.Errorf("storage.swift.ca_file: %w", err)
	}
	s := &swift{container: u.Host, policy: c.StoragePolicy, login: login, client: client, token: newSwiftTokens()}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		s.prefix = prefix + "/"
	}
	return s, nil
}

func checkSwiftURL(u *url.URL) error {
	prefix := strings.TrimSuffix(strings.TrimPrefix(u.Path, "/"), "/")
	switch {
	case u.User != nil:
		return hint.Wrap(errors.New("url: a swift:// URL names no user"), "write "+swiftURLHint+"; user and password belong to storage.swift")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return hint.Wrap(errors.New(`url: "?" or "#" in a swift:// URL`), "write them %%3F and %%23 where they are part of the prefix")
	case u.Host == "" || u.Opaque != "":
		return hint.Wrap(errors.New("url: no container is named"), "write "+swiftURLHint)
	case u.Port() != "" || strings.ContainsRune(u.Host, ':'):
		return hint.Wrap(errors.New("url: a swift:// URL names no port"), "write "+swiftURLHint+"; the server is found through storage.swift.auth_url")
	case len(u.Host) > swiftMaxContainer:
		return fmt.Errorf("url: the container's name is longer than %d bytes", swiftMaxContainer)
	case len(prefix) > swiftMaxPrefix:
		return fmt.Errorf("url: the prefix is longer than %d bytes", swiftMaxPrefix)
	}
	if prefix != "" {
		if err := CheckKey(prefix); err != nil {
			return fmt.Errorf("url: %w", err)
		}
	}
	return nil
}

func (s *swift) String() string {
	u := url.URL{Scheme: "swift", Host: s.container}
	if s.prefix != "" {
		u.Path = "/" + strings.TrimSuffix(s.prefix, "/")
	}
	return u.String()
}

func (s *swift) Capabilities() Capabilities { return Capabilities{} }

// failed puts operation and key before an error.
func (s *swift) failed(op, key string, err error) error {
	if key == "" {
		return fmt.Errorf("%s %s: %w", op, s, err)
	}
	return fmt.Errorf("%s %s in %s: %w", op, key, s, err)
}

func (s *swift) check(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return CheckKey(key)
}

// name is the name of a key's object.
func (s *swift) name(key string) string { return s.prefix + key }

// notFound says why an object is not there: ErrNotFound only if the container could be asked.
func (s *swift) notFound(ctx context.Context) error {
	there, err := s.present(ctx)
	if err != nil {
		return err
	}
	if there {
		return ErrNotFound
	}
	return hint.Wrap(fmt.Errorf("%w: there is no container %s", ErrNotFound, s.container),
		"if something should be there, look at the container's name in storage.url, and at tenant and region in storage.swift; the first write creates the container")
}

// present says whether the container is there, and ErrVanished if it was there before.
func (s *swift) present(ctx context.Context) (bool, error) {
	// Not HEAD, and not without a format: servers answer both with 204 and yet with a body, which breaks the connection.
	resp, err := s.do(ctx, swiftRequest{method: http.MethodGet, query: url.Values{"limit": {"1"}, "format": {"json"}}})
	if err != nil {
		return false, err
	}
	defer swiftDrain(resp)
	switch {
	case resp.StatusCode/100 == 2:
		s.seen.Store(true)
		return true, nil
	case resp.StatusCode == http.StatusNotFound && s.seen.Load():
		return false, s.vanished()
	case resp.StatusCode == http.StatusNotFound:
		return false, nil
	}
	return false, s.refused(resp)
}

func (s *swift) vanished() error {
	return hint.Wrap(fmt.Errorf("%w: there is no container %s any more", ErrVanished, s.container),
		"somebody deleted the container while it was in use; pitr creates it again once it is started anew, but what it held is gone with it")
}

// begin creates the container; where another process does the same, that does not matter.
func (s *swift) begin(ctx context.Context) error {
	req := swiftRequest{method: http.MethodPut, header: http.Header{}}
	if s.policy != "" {
		req.header.Set("X-Storage-Policy", s.policy)
	}
	resp, err := s.do(ctx, req)
	if err != nil {
		return fmt.Errorf("create container %s: %w", s.container, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		s.seen.Store(true)
		return nil
	}
	err = fmt.Errorf("create container %s: %w", s.container, s.refused(resp))
	switch resp.StatusCode {
	case http.StatusForbidden:
		return hint.Wrap(err, "%s may not create containers: let an operator create %s and give it the right to read and write there", s.login.who(), s.container)
	case http.StatusBadRequest:
		if s.policy != "" {
			return hint.Wrap(err, "look whether the server has the policy of storage.swift.storage_policy, %q", s.policy)
		}
	}
	return err
}
