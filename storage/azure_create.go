package storage

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"golang.org/x/sync/errgroup"
)

const (
	// azureBlock is how much of an object is sent at once, and so what a Create needs of memory, times four. What is not
	// longer goes in one request.
	azureBlock = 4 << 20
	// azureParallel is how many blocks of one object are on the way at once.
	azureParallel = 3
	// azureGrow is after how many blocks they become twice as long, up to 16 times: 50,000 is the most that an object can have.
	azureGrow = 10_000

	// azureMark is the metadata that holds the name of the attempt that stored an object.
	azureMark = "pitrattempt"
)

// azureBlockSize is the length of the n-th block, from 0; 0 where there can be none.
func azureBlockSize(n int) int {
	if n >= 5*azureGrow {
		return 0
	}
	return azureBlock << (n / azureGrow)
}

func (a *azure) Create(ctx context.Context, key string, r io.Reader) error {
	if err := a.create(ctx, key, r); err != nil {
		return a.failed(ctx, "create", key, err)
	}
	return nil
}

func (a *azure) create(ctx context.Context, key string, r io.Reader) error {
	if err := a.check(ctx, key); err != nil {
		return err
	}
	u := &azureUpload{azure: a, key: key, attempt: rand.Text(), client: a.client.NewBlockBlobClient(a.name(key)), sum: md5.New()}
	first := a.block(azureBlock)
	n, err := u.fill(ctx, r, *first)
	if err == errMore {
		return u.large(ctx, r, first)
	}
	if err == nil {
		if err = u.settle(ctx, u.put(ctx, (*first)[:n])); err == errGone {
			// Azurite takes blocks that were never committed for an object, except where it is to commit some itself.
			err = u.inBlocks(ctx, nil, first, n)
		}
	}
	if err == nil {
		a.free(first)
	}
	return err
}

// block gives a buffer for a block.
func (a *azure) block(size int) *[]byte {
	if size == azureBlock {
		if b, ok := a.blocks.Get().(*[]byte); ok {
			return b
		}
	}
	b := make([]byte, size)
	return &b
}

// free takes back a buffer whose request succeeded. After others the transport may still be reading it.
func (a *azure) free(b *[]byte) {
	if len(*b) == azureBlock {
		a.blocks.Put(b)
	}
}

// azureUpload is one attempt to create an object.
type azureUpload struct {
	*azure
	key     string
	attempt string // is unique
	client  *blockblob.Client
	sum     hash.Hash // of everything read
}

// errMore says that a block is full and that more may follow.
var errMore = errors.New("more follows")

// fill reads a block. The error is nil at the end of r and errMore before. What ends in an error of r, or when ctx has ended,
// is none.
func (u *azureUpload) fill(ctx context.Context, r io.Reader, block []byte) (n int, err error) {
	for n < len(block) && err == nil {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		var m int
		m, err = r.Read(block[n:min(n+copyChunk, len(block))])
		n += m
	}
	u.sum.Write(block[:n])
	switch {
	case ctx.Err() != nil:
		return n, ctx.Err()
	case err == io.EOF:
		return n, nil
	case err == nil:
		return n, errMore
	}
	return n, azureForeign{err}
}

// azureForeign is an error of the reader, which the store has nothing to say about.
type azureForeign struct{ error }

func (f azureForeign) Unwrap() error { return f.error }

// put stores an object of one block.
func (u *azureUpload) put(ctx context.Context, content []byte) error {
	sum := u.sum.Sum(nil)
	expiry, mode := u.as.immutable()
	_, err := u.client.Upload(ctx, azureReader(content), &blockblob.UploadOptions{
		TransactionalValidation:      blob.TransferValidationTypeMD5(sum),
		HTTPHeaders:                  azureHeaders(sum),
		AccessConditions:             azureIfAbsent(),
		Metadata:                     map[string]*string{azureMark: &u.attempt},
		Tier:                         u.as.tier,
		Tags:                         u.as.tags,
		CPKScopeInfo:                 u.as.scope,
		ImmutabilityPolicyExpiryTime: expiry,
		ImmutabilityPolicyMode:       mode,
	})
	return err
}

func azureHeaders(sum []byte) *blob.HTTPHeaders {
	return &blob.HTTPHeaders{BlobContentMD5: sum, BlobContentType: to.Ptr("application/octet-stream")}
}

func azureIfAbsent() *blob.AccessConditions {
	return &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)}}
}

// immutable gives the end and kind of the protection that a new object gets.
func (as azureAttributes) immutable() (*time.Time, *blob.ImmutabilityPolicySetting) {
	if as.days == 0 {
		return nil, nil
	}
	mode := blob.ImmutabilityPolicySettingUnlocked
	if as.locked {
		mode = blob.ImmutabilityPolicySettingLocked
	}
	return to.Ptr(time.Now().AddDate(0, 0, as.days).UTC()), &mode
}

// large stores an object of several blocks, of which first holds the first.
func (u *azureUpload) large(ctx context.Context, r io.Reader, first *[]byte) error {
	// Knowing early saves the sending; what counts is the condition at the end.
	if _, err := u.properties(ctx, u.key); err == nil {
		return ErrExists
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	return u.inBlocks(ctx, r, first, len(*first))
}

// inBlocks stores the first n bytes of block, and what r, unless it is nil, gives after them.
func (u *azureUpload) inBlocks(ctx context.Context, r io.Reader, block *[]byte, n int) error {
	ids, err := u.stage(ctx, r, block, n)
	if err == nil {
		err = u.settle(ctx, u.commit(ctx, ids))
	}
	if err == errGone {
		err = MarkTemporary(err)
	}
	return err
}

// stage sends the blocks, a few at a time, while the next one is read, and returns their names. Every attempt uses names of
// its own, of one length as the service demands: those of racing writers never mix.
func (u *azureUpload) stage(ctx context.Context, r io.Reader, block *[]byte, n int) (ids []string, err error) {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(azureParallel)
	full := errMore
	if r == nil {
		full = nil
	}
	for {
		if n > 0 {
			id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%s-%08d", u.attempt, len(ids)))
			ids = append(ids, id)
			this, content := block, (*block)[:n]
			group.Go(func() error {
				sum := md5.Sum(content)
				_, err := u.client.StageBlock(groupCtx, id, azureReader(content), &blockblob.StageBlockOptions{
					TransactionalValidation: blob.TransferValidationTypeMD5(sum[:]),
					CPKScopeInfo:            u.as.scope,
				})
				if err == nil {
					u.free(this)
				}
				return err
			})
		}
		if full == nil || groupCtx.Err() != nil {
			break
		}
		size := azureBlockSize(len(ids))
		if size == 0 {
			full = errors.New("the object is larger than the store can hold")
			break
		}
		block = u.block(size)
		if n, full = u.fill(groupCtx, r, *block); full != nil && full != errMore {
			break
		}
	}
	// A failed request ends the reading: its error is the first.
	sent := group.Wait()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case sent != nil:
		return nil, sent
	case full != nil && full != errMore:
		return nil, full
	}
	return ids, nil
}

func (u *azureUpload) commit(ctx context.Context, ids []string) error {
	expiry, mode := u.as.immutable()
	_, err := u.client.CommitBlockList(ctx, ids, &blockblob.CommitBlockListOptions{
		HTTPHeaders:                  azureHeaders(u.sum.Sum(nil)),
		AccessConditions:             azureIfAbsent(),
		Metadata:                     map[string]*string{azureMark: &u.attempt},
		Tier:                         u.as.tier,
		Tags:                         u.as.tags,
		CPKScopeInfo:                 u.as.scope,
		ImmutabilityPolicyExpiryTime: expiry,
		ImmutabilityPolicyMode:       mode,
	})
	return err
}

// settle finds out what became of a conditional put that ended in err: the answer can be lost on the way, and a repetition
// by something in between be refused because of what the first one did. The object itself says who stored it.
func (u *azureUpload) settle(ctx context.Context, err error) error {
	if err == nil {
		u.seen.Store(true)
		return nil
	}
	if !azureUndecided(err) || ctx.Err() != nil {
		return err
	}
	p, asked := u.properties(ctx, u.key)
	switch {
	case asked == nil && u.ours(p.Metadata):
		return nil
	case asked == nil:
		return ErrExists
	case azureTaken(err) && errors.Is(asked, ErrNotFound):
		return errGone
	case azureTaken(err):
		return asked
	}
	return err
}

// errGone says that a put was refused because the key is taken, and that nothing is there.
var errGone = errors.New("the store says that the key is taken, and that nothing is there")

func (u *azureUpload) ours(metadata map[string]*string) bool {
	for name, value := range metadata {
		if strings.EqualFold(name, azureMark) && value != nil {
			return *value == u.attempt
		}
	}
	return false
}

// azureTaken says that a conditional put was refused because the key is taken.
func azureTaken(err error) bool {
	return bloberror.HasCode(err, bloberror.BlobAlreadyExists, bloberror.ConditionNotMet)
}

// azureUndecided says that after err the object may be there, from this attempt or another one's.
func azureUndecided(err error) bool {
	switch status := azureStatus(err); {
	case status == 0, status >= 500, status == http.StatusRequestTimeout, status == http.StatusConflict, status == http.StatusPreconditionFailed:
		return true
	}
	// Whoever commits first drops the blocks of all the others.
	return bloberror.HasCode(err, bloberror.InvalidBlockList, bloberror.InvalidBlobOrBlock)
}
