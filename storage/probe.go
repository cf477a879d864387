package storage

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	probeRounds  = 4
	probeWriters = 8
	// probeSize is large enough that a store which looks for the key first and reads the content then is caught letting
	// two writers through.
	probeSize = 300_000
	// probeCleanup is how long the removal of the scratch objects may go on after ctx has ended.
	probeCleanup = 30 * time.Second
)

// Probe tries what b declares: writers race for one key, and listings follow at once on Create and Delete. It returns
// the declared capabilities less those that did not hold; a race can only be disproved. A store on which an object does
// not come back as it was written is an error. The scratch objects lie under "probe/" and a random name, and are removed.
func Probe(ctx context.Context, b Bucket) (got Capabilities, err error) {
	got = Capabilities{CreateIfAbsent: true, StrongList: true}
	prefix := "probe/" + rand.Text() + "/"
	var keys []string
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeCleanup)
		defer cancel()
		if e := b.Delete(ctx, keys...); err == nil {
			err = e
		}
	}()
	for round := range probeRounds {
		key := fmt.Sprintf("%s%d", prefix, round)
		keys = append(keys, key)
		one, err := probeRace(ctx, b, key)
		if err != nil {
			return Capabilities{}, err
		}
		got.CreateIfAbsent = got.CreateIfAbsent && one
		listed, err := lists(ctx, b, prefix, key)
		if err != nil {
			return Capabilities{}, err
		}
		if err := b.Delete(ctx, key); err != nil {
			return Capabilities{}, err
		}
		still, err := lists(ctx, b, prefix, key)
		if err != nil {
			return Capabilities{}, err
		}
		got.StrongList = got.StrongList && listed && !still
	}
	// Asked at last, when the store has been written to.
	declared := b.Capabilities()
	got.CreateIfAbsent = got.CreateIfAbsent && declared.CreateIfAbsent
	got.StrongList = got.StrongList && declared.StrongList
	return got, nil
}

// probeRace lets writers race for key and says whether one alone won, and its content is there.
func probeRace(ctx context.Context, b Bucket, key string) (exclusive bool, err error) {
	contents := make([][]byte, probeWriters)
	won := make([]bool, probeWriters)
	group, groupCtx := errgroup.WithContext(ctx)
	for i := range contents {
		contents[i] = make([]byte, probeSize)
		rand.Read(contents[i]) // never fails
		group.Go(func() error {
			err := b.Create(groupCtx, key, bytes.NewReader(contents[i]))
			won[i] = err == nil
			if errors.Is(err, ErrExists) {
				return nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return false, err
	}
	stored, err := readAll(ctx, b, key)
	if err != nil {
		return false, err
	}
	winners, whose := 0, -1
	for i := range contents {
		if won[i] {
			winners++
		}
		if bytes.Equal(stored, contents[i]) {
			whose = i
		}
	}
	if whose < 0 {
		return false, fmt.Errorf("probe %s: the object %s came back different from what was written", b, key)
	}
	return winners == 1 && won[whose], nil
}

func readAll(ctx context.Context, b Bucket, key string) ([]byte, error) {
	r, err := b.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func lists(ctx context.Context, b Bucket, prefix, key string) (bool, error) {
	for o, err := range b.List(ctx, prefix, "") {
		if err != nil {
			return false, err
		}
		if o.Key == key {
			return true, nil
		}
	}
	return false, nil
}
