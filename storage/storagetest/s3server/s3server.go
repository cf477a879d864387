// Package s3server starts a real S3 server, versitygw on a directory, for tests. It owns finding the program and the
// server's life, and knows nothing of how a client speaks to it.
package s3server

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pitr/storage"
)

// Version is the release of versitygw that is tested with.
const Version = "1.8.0"

const (
	accessKey = "testak"
	secretKey = "testsk123456"

	// starting is how long the server may take to listen; it needs some 60 ms.
	starting = 30 * time.Second
)

// Server is one that runs.
type Server struct {
	Endpoint string // http://127.0.0.1:PORT
	Data     string // a directory in it is a bucket, and a file below that an object

	secretFile string
}

// Start starts a server, and stops it when the test ends.
func Start(t testing.TB, options ...string) *Server {
	t.Helper()
	program := find(t)
	dir := t.TempDir()
	s := &Server{Data: filepath.Join(dir, "data"), secretFile: filepath.Join(dir, "secret")}
	if err := os.Mkdir(s.Data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.secretFile, []byte(secretKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	address := freeAddress(t)
	s.Endpoint = "http://" + address
	args := append([]string{"--quiet", "--keep-alive", "--port", address}, options...)
	server := exec.Command(program, append(args, "posix", s.Data)...)
	server.Env = []string{"ROOT_ACCESS_KEY=" + accessKey, "ROOT_SECRET_KEY=" + secretKey, "HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	server.Stdout, server.Stderr = log, log
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	t.Cleanup(func() {
		server.Process.Kill()
		<-ended
	})
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return s
		}
		select {
		case err := <-ended:
			ended <- err
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("versitygw ended: %v\n%s", err, said)
		default:
		}
		if time.Since(begin) > starting {
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("versitygw does not listen on %s: %v\n%s", address, err, said)
		}
	}
}

// Bucket makes a bucket and returns the configuration for the prefix in it.
func (s *Server) Bucket(t testing.TB, bucket, prefix string) storage.Config {
	t.Helper()
	if err := os.Mkdir(filepath.Join(s.Data, bucket), 0o755); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	return s.Config(bucket, prefix)
}

// Config is that for a bucket, whether it is there or not.
func (s *Server) Config(bucket, prefix string) storage.Config {
	return storage.Config{
		URL: strings.TrimSuffix("s3://"+bucket+"/"+prefix, "/"),
		S3: storage.S3Config{
			Endpoint: s.Endpoint, Region: "us-east-1", PathStyle: true,
			AccessKeyID: accessKey, SecretAccessKeyFile: s.secretFile,
		},
	}
}

// find returns the program: in the cache of tests/deps, or in the PATH.
func find(t testing.TB) string {
	t.Helper()
	for _, cache := range caches() {
		program := filepath.Join(cache, "pitr/tools/versitygw-"+Version, "versitygw")
		if info, err := os.Stat(program); err == nil && info.Mode().IsRegular() {
			return program
		}
	}
	program, err := exec.LookPath("versitygw")
	if err != nil {
		t.Fatalf("the S3 server that this test starts is missing; install it: make deps, or tests/deps/run s3\n"+
			"(that is: go install github.com/versity/versitygw/cmd/versitygw@v%s)", Version)
	}
	return program
}

func caches() []string {
	all := []string{"/var/cache"}
	if own, err := os.UserCacheDir(); err == nil {
		all = append(all, own)
	}
	return all
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Plant puts an object of one byte under each key, as links to a few files, behind the server's back.
func (s *Server) Plant(t testing.TB, bucket, prefix string, keys []string) {
	t.Helper()
	const linksPerFile = 10_000 // ext4 allows 65,000
	from := ""
	made := map[string]bool{}
	for i, key := range keys {
		path := filepath.Join(s.Data, bucket, prefix, key)
		var err error
		if dir := filepath.Dir(path); !made[dir] {
			made[dir] = true
			err = os.MkdirAll(dir, 0o755)
		}
		if err == nil && i%linksPerFile == 0 {
			from = path
			err = os.WriteFile(path, []byte("x"), 0o644)
		} else if err == nil {
			err = os.Link(from, path)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Uploads counts the files of multipart uploads that were begun and neither completed nor aborted.
func (s *Server) Uploads(t testing.TB, bucket string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(s.Data, bucket), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(path, "/.sgwtmp/multipart/") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(fmt.Errorf("look for uploads: %w", err))
	}
	return files
}
