// Package azureserver starts Azurite, Microsoft's emulator of Azure's blob service, for tests. It owns the process, its
// certificate and its account; what is stored in it is the tests'.
package azureserver

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"pitr/storage"
)

// Version is the one that tests/deps/run installs.
const Version = "3.35.0"

// Account is the storage account that a Server has.
const Account = "pitrtest"

// A Server is an Azurite that listens on a port of its own and forgets everything when it ends.
type Server struct {
	Endpoint string // of Account: what storage.azure.endpoint wants
	KeyFile  string // holds the account key
	CAFile   string // of a server with TLS: its certificate

	key string
}

// Start starts a server, which ends with the test. It speaks HTTP, and knows keys and shared access signatures.
func Start(t testing.TB) *Server { return start(t, false) }

// StartTLS starts a server that speaks HTTPS, and also takes tokens of identities: it believes whatever they say.
func StartTLS(t testing.TB) *Server { return start(t, true) }

// program finds the server, or ends the test with what installs it.
func program(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("node"); err != nil {
		t.Fatal("node is missing: run tests/deps/run azurite")
	}
	main := filepath.Join(cache(t), "azurite-"+Version, "node_modules", "azurite", "dist", "src", "blob", "main.js")
	if _, err := os.Stat(main); err != nil {
		t.Fatalf("azurite %s is missing (%v): run tests/deps/run azurite", Version, err)
	}
	return main
}

// cache is where tests/deps/run keeps servers.
func cache(t testing.TB) string {
	if os.Geteuid() == 0 {
		return "/var/cache/pitr"
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "pitr")
}

func start(t testing.TB, secure bool) *Server {
	t.Helper()
	main := program(t)
	dir := t.TempDir()
	key := make([]byte, 64)
	rand.Read(key) // never fails
	s := &Server{KeyFile: filepath.Join(dir, "key"), key: base64.StdEncoding.EncodeToString(key)}
	write(t, s.KeyFile, s.key+"\n")

	args := []string{main, "--disableTelemetry", "--silent", "--skipApiVersionCheck", "--inMemoryPersistence", "--blobHost", "127.0.0.1", "--blobPort", "0"}
	if secure {
		s.CAFile = filepath.Join(dir, "cert.pem")
		private := filepath.Join(dir, "key.pem")
		certify(t, s.CAFile, private)
		args = append(args, "--oauth", "basic", "--cert", s.CAFile, "--key", private)
	}
	cmd := exec.Command("node", args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "AZURITE_ACCOUNTS=" + Account + ":" + s.key}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // an interrupt at the terminal is not for it
	lower(t, cmd, dir)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listens, done := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(done)
		defer close(listens)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if _, at, ok := strings.Cut(lines.Text(), "successfully listens on "); ok {
				listens <- strings.TrimSpace(at)
				break
			}
		}
		io.Copy(io.Discard, out)
	}()
	stop := func() {
		cmd.Process.Kill()
		<-done
		cmd.Wait()
	}
	t.Cleanup(stop)
	select {
	case at, ok := <-listens:
		if !ok {
			<-done
			cmd.Wait()
			t.Fatalf("azurite ended: %s", complaints.String())
		}
		s.Endpoint = at + "/" + Account
	case <-time.After(60 * time.Second):
		t.Fatal("azurite does not listen after 60 s")
	}
	return s
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// lower makes a server that root starts run as nobody.
func lower(t testing.TB, cmd *exec.Cmd, dir string) {
	if os.Geteuid() != 0 {
		return
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.ParseUint(nobody.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	// The directories above come from the testing package, and are closed to others: the server gets what it reads by name.
	for path := dir; strings.HasPrefix(path, os.TempDir()+"/"); path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"cert.pem", "key.pem"} {
		path := filepath.Join(dir, name)
		if err := os.Chown(path, int(uid), int(gid)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

// certify makes a certificate for 127.0.0.1 that vouches for itself.
func certify(t testing.TB, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "azurite"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
}

// Config is that of a store in a new container of the server, by the account key.
func (s *Server) Config(t testing.TB) storage.Config {
	t.Helper()
	return storage.Config{
		URL:   "azure://" + s.NewContainer(t),
		Azure: storage.AzureConfig{Account: Account, KeyFile: s.KeyFile, Endpoint: s.Endpoint, CAFile: s.CAFile},
	}
}

// Key is the account key.
func (s *Server) Key() string { return s.key }

// Client reaches a container as the SDK does, past the driver.
func (s *Server) Client(t testing.TB, name string) *container.Client {
	t.Helper()
	credential, err := blob.NewSharedKeyCredential(Account, s.key)
	if err != nil {
		t.Fatal(err)
	}
	opts := &container.ClientOptions{}
	if s.CAFile != "" {
		cert, err := os.ReadFile(s.CAFile)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(cert)
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
		t.Cleanup(transport.CloseIdleConnections)
		opts.Transport = &http.Client{Transport: transport}
	}
	c, err := container.NewClientWithSharedKeyCredential(s.Endpoint+"/"+name, credential, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// NewContainer makes an empty container and returns its name.
func (s *Server) NewContainer(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("test-%s", strings.ToLower(rand.Text()))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := s.Client(t, name).Create(ctx, nil); err != nil {
		t.Fatal(err)
	}
	return name
}
