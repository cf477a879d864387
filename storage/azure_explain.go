package storage

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"pitr/internal/hint"
)

// azureSkew is how far the clock may be off before it is named as a cause; the service refuses beyond 15 minutes.
const azureSkew = 5 * time.Minute

// azureStatus is the HTTP status that err came with, 0 if it came with none.
func azureStatus(err error) int {
	if e, ok := errors.AsType[*azcore.ResponseError](err); ok {
		return e.StatusCode
	}
	return 0
}

// explain turns an error of the SDK, whose text can hold URLs with signatures and pages of protocol, into one line, with
// what can be done about it, and marks those that pass by themselves.
func (a *azure) explain(err error) error {
	if f, ok := err.(azureForeign); ok {
		return f.error
	}
	for _, known := range []error{ErrNotFound, ErrExists, ErrVanished, ErrInvalidKey, context.Canceled, context.DeadlineExceeded} {
		if err == known {
			return err
		}
	}
	if errors.Is(err, ErrInvalidKey) || err == io.ErrUnexpectedEOF || hint.Of(err) != "" || Temporary(err) {
		return err
	}
	if e, ok := errors.AsType[*azcore.ResponseError](err); ok && !azureIdentityError(err) {
		return a.explainAnswer(e)
	}
	if azureIdentityError(err) {
		return a.explainIdentity(err)
	}
	return a.explainNetwork(err)
}

// explainAnswer is for what the service itself has said.
func (a *azure) explainAnswer(e *azcore.ResponseError) error {
	text := fmt.Sprintf("%d %s", e.StatusCode, http.StatusText(e.StatusCode))
	if e.ErrorCode != "" {
		text = fmt.Sprintf("%d %s", e.StatusCode, e.ErrorCode)
	}
	if message := azureMessage(e); message != "" {
		text += ": " + message
	}
	err := errors.New(text)
	account := a.login.account
	switch code := bloberror.Code(e.ErrorCode); code {
	case bloberror.ContainerNotFound, bloberror.ContainerBeingDeleted, bloberror.ContainerDisabled:
		if a.seen.Load() {
			return hint.Wrap(fmt.Errorf("%w: %w", ErrVanished, err), "container %s of account %s was there before: find out who deleted it; az storage container restore brings it back where soft delete is on", a.container, account)
		}
		return hint.Wrap(err, "account %s has no container %s: correct storage.url, or create it: az storage container create --account-name %s --name %s", account, a.container, account, a.container)
	case bloberror.InsufficientAccountPermissions, bloberror.AuthorizationPermissionMismatch, bloberror.AuthorizationResourceTypeMismatch, bloberror.AuthorizationServiceMismatch:
		return hint.Wrap(err, "%s may not do this in container %s of account %s: %s", a.login.kind, a.container, account, a.rights())
	case bloberror.AuthorizationSourceIPMismatch:
		return hint.Wrap(err, "the shared access signature is for other addresses than this host's: make one without --ip, or with this one")
	case bloberror.AuthorizationProtocolMismatch:
		return hint.Wrap(err, "the shared access signature, or the account, demands https: correct storage.azure.endpoint")
	case "KeyBasedAuthenticationNotPermitted":
		return hint.Wrap(err, "account %s refuses keys and signatures made with them: use storage.azure.managed_identity", account)
	case bloberror.AccountIsDisabled:
		return hint.Wrap(err, "account %s is disabled: see to its subscription", account)
	case bloberror.ResourceNotFound:
		return hint.Wrap(err, "there is no account %s at %s: correct storage.azure.account or endpoint", account, a.login.endpoint)
	case bloberror.BlobArchived, bloberror.BlobBeingRehydrated:
		return hint.Wrap(err, "the blob was moved to the archive tier: bring it back with az storage blob set-tier --tier Hot, which takes hours, and take the container out of that lifecycle rule")
	case bloberror.BlobImmutableDueToPolicy:
		return hint.Wrap(err, "a retention policy or legal hold of container %s keeps the object: shorten storage.azure.immutable_days, or lengthen backup.retention", a.container)
	case bloberror.LeaseIDMissing:
		return hint.Wrap(err, "somebody holds a lease on the object: az storage blob lease break --container-name %s", a.container)
	case bloberror.InvalidHeaderValue, bloberror.UnsupportedHeader, bloberror.InvalidInput, "FeatureNotSupported":
		return hint.Wrap(err, "the service at %s does not know a part of the request: look whether access_tier, tags, encryption_scope and immutable_days fit the account; azurite needs --skipApiVersionCheck", a.login.endpoint)
	case bloberror.MD5Mismatch, bloberror.CRC64Mismatch, bloberror.InvalidBlockList, bloberror.InvalidBlobOrBlock:
		return MarkTemporary(err) // damaged on the way, or another writer came first and dropped the blocks
	case bloberror.ServerBusy, bloberror.OperationTimedOut, bloberror.InternalError:
		return MarkTemporary(hint.Wrap(err, "the service is overloaded or limits account %s: look at Azure's status page and the account's metrics", account))
	}
	switch {
	case e.StatusCode == http.StatusUnauthorized, e.StatusCode == http.StatusForbidden:
		return a.explainRefusal(e, err)
	case e.StatusCode == http.StatusNotImplemented, e.StatusCode == http.StatusHTTPVersionNotSupported:
		return err
	case e.StatusCode >= 500, e.StatusCode == http.StatusTooManyRequests, e.StatusCode == http.StatusRequestTimeout:
		return MarkTemporary(hint.Wrap(err, "the service at %s is overloaded or out of order: look at Azure's status page and the account's metrics", a.login.endpoint))
	}
	return err
}

// explainRefusal finds out why the service does not believe who asks.
func (a *azure) explainRefusal(e *azcore.ResponseError, err error) error {
	if e.RawResponse != nil {
		if theirs, parsed := http.ParseTime(e.RawResponse.Header.Get("Date")); parsed == nil {
			if off := time.Since(theirs).Round(time.Minute); off.Abs() >= azureSkew {
				way := "ahead of"
				if off < 0 {
					way = "behind"
				}
				return hint.Wrap(err, "the clock of this host is %v %s the service's: set it (timedatectl set-ntp true)", off.Abs(), way)
			}
		}
	}
	if end, over := a.login.expired(); over {
		return hint.Wrap(err, "%s ended at %s: put a new one in its place", a.login.kind, end.UTC().Format(time.RFC3339))
	}
	switch {
	case a.login.token != nil:
		return hint.Wrap(err, "%s is not let in by account %s: %s, and look at the account's firewall", a.login.kind, a.login.account, a.rights())
	case a.login.sas != nil:
		return hint.Wrap(err, "account %s refuses %s: %s, and look at the account's firewall", a.login.account, a.login.kind, a.rights())
	}
	return hint.Wrap(err, "account %s refuses %s: compare it with az storage account keys list --account-name %s, and look at the account's firewall", a.login.account, a.login.kind, a.login.account)
}

// rights says what must be granted.
func (a *azure) rights() string {
	switch {
	case a.login.token != nil:
		return "give it the role Storage Blob Data Contributor"
	case a.login.sas != nil:
		return "make one for this container with the permissions racwdl, and t where tags are set"
	}
	return "look at the account's rules"
}

// azureMessage is the first line of what the service says in words.
func azureMessage(e *azcore.ResponseError) string {
	if e.RawResponse == nil || e.RawResponse.Body == nil {
		return ""
	}
	var said struct{ Message string }
	// The SDK has read the body, and lets it be read again.
	if xml.NewDecoder(io.LimitReader(e.RawResponse.Body, 64<<10)).Decode(&said) != nil {
		return ""
	}
	line, _, _ := strings.Cut(strings.TrimSpace(said.Message), "\n")
	return strings.TrimSuffix(strings.TrimSpace(line), ".")
}

// azureIdentityError says that not the service of blobs has answered, but the one that gives tokens.
func azureIdentityError(err error) bool {
	if _, ok := errors.AsType[*azidentity.AuthenticationFailedError](err); ok {
		return true
	}
	// What is said where no identity was found has an interface, but no exported type.
	var none interface{ NonRetriable() }
	return errors.As(err, &none) && strings.Contains(err.Error(), "Credential")
}

func (a *azure) explainIdentity(err error) error {
	text := strings.Join(strings.Fields(err.Error()), " ")
	if len(text) > 400 {
		text = text[:400] + "…"
	}
	plain := hint.Wrap(fmt.Errorf("no token for %s: %s", a.login.kind, text),
		"set storage.azure.key_file, sas_file or managed_identity, or give this service AZURE_STORAGE_* or AZURE_CLIENT_ID, AZURE_TENANT_ID and a secret in its environment")
	if e, ok := errors.AsType[*azidentity.AuthenticationFailedError](err); ok {
		if r := e.RawResponse; r == nil || r.StatusCode >= 500 || r.StatusCode == http.StatusTooManyRequests {
			return MarkTemporary(plain)
		}
	}
	return plain
}

// explainNetwork is for when no answer came. The errors below are not kept: their texts can hold the URL, with a
// signature, and a time-out of the network would pass for one of the context.
func (a *azure) explainNetwork(err error) error {
	at := a.login.endpoint
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	plain := errors.New(err.Error())
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var certificate *tls.CertificateVerificationError
	switch dns, ok := errors.AsType[*net.DNSError](err); {
	case ok && dns.IsNotFound:
		return hint.Wrap(plain, "no host of that name: is storage.azure.account (%s) right? Other clouds than the public one need storage.azure.endpoint", a.login.account)
	case errors.As(err, &unknown), errors.As(err, &name), errors.As(err, &invalid), errors.As(err, &certificate):
		return hint.Wrap(plain, "the certificate of %s is not trusted: name its authority's in storage.azure.ca_file, and look whether a proxy stands between", at)
	case strings.Contains(plain.Error(), "server gave HTTP response to HTTPS client"):
		return hint.Wrap(plain, "%s speaks no https: correct storage.azure.endpoint", at)
	}
	if !azureIsNetwork(err) {
		return plain
	}
	return MarkTemporary(hint.Wrap(plain, "%s does not answer as it should: look at the network, the firewall and the proxy (HTTPS_PROXY)", at))
}

// azureIsNetwork says that err is about a connection, and not about how the request was made.
func azureIsNetwork(err error) bool {
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return true
	}
	// net/http has no types for these.
	for _, text := range []string{"transport connection broken", "server closed idle connection", "malformed HTTP", "http: server closed", "proxyconnect", "connection reset", "broken pipe"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}
