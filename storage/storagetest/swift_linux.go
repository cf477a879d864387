package storagetest

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pitr/storage"
)

// A Swift is an OpenStack Swift on this machine: one proxy, account, container and object server each, with tempauth.
type Swift struct {
	AuthURL string // version 1
	// User may do everything in the account, Reader nothing that nobody allowed. The files hold their passwords.
	User, PasswordFile         string
	Reader, ReaderPasswordFile string

	dir   string
	ports swiftPorts
}

type swiftPorts struct{ proxy, account, container, object, memcached int }

const (
	swiftPassword       = "testing-secret"
	swiftReaderPassword = "reading-secret"
	swiftHashSalt       = "pitrtest"
)

// swiftMain runs a server with a swift.conf of its own: otherwise all read the one in /etc.
const swiftMain = `
import runpy, sys
from swift.common import utils
utils.set_swift_dir(sys.argv[1])
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name='__main__')
`

var swiftPrograms = []string{"swift-proxy-server", "swift-account-server", "swift-container-server", "swift-object-server", "memcached"}

// StartSwift starts a Swift with nothing in it, and stops it when the test ends. Where a program of it is missing, the test
// fails.
func StartSwift(t testing.TB) *Swift {
	t.Helper()
	for _, program := range swiftPrograms {
		if _, err := os.Stat("/usr/bin/" + program); err != nil {
			t.Fatalf("/usr/bin/%s is missing: run ./tests/deps/run swift", program)
		}
	}
	account := swiftAccount(t)
	// Not t.TempDir: the server's user must get in.
	dir, err := os.MkdirTemp("", "pitr-swift-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Swift{
		User: "test:tester", PasswordFile: dir + "/password",
		Reader: "test:reader", ReaderPasswordFile: dir + "/reader-password",
		dir: dir,
	}
	p := swiftFreePorts(t, 5)
	s.ports = swiftPorts{p[0], p[1], p[2], p[3], p[4]}
	s.AuthURL = fmt.Sprintf("http://127.0.0.1:%d/auth/v1.0", s.ports.proxy)
	if err := s.configure(account); err != nil {
		t.Fatal(err)
	}
	s.run(t, account)
	s.await(t)
	return s
}

// Config is that of a container that is not there yet.
func (s *Swift) Config(container string) storage.Config {
	return storage.Config{
		URL:   "swift://" + container,
		Swift: storage.SwiftConfig{AuthURL: s.AuthURL, Username: s.User, PasswordFile: s.PasswordFile},
	}
}

// Host is where the proxy listens.
func (s *Swift) Host() string { return fmt.Sprintf("127.0.0.1:%d", s.ports.proxy) }

// ForgetTokens makes every token that was given out invalid.
func (s *Swift) ForgetTokens(t testing.TB) {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.ports.memcached))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answer := make([]byte, 4)
	if _, err = c.Write([]byte("flush_all\r\n")); err == nil {
		_, err = c.Read(answer)
	}
	if err != nil || string(answer) != "OK\r\n" {
		t.Fatalf("memcached says %q, %v", answer, err)
	}
}

// Plant enters objects of one byte into the listing of a container that is there; there is nothing behind the entries.
func (s *Swift) Plant(t testing.TB, container string, names []string) {
	t.Helper()
	const script = `
import sys
from swift.common import utils
utils.set_swift_dir(sys.argv[2])
from swift.container.backend import ContainerBroker
from swift.common.utils import Timestamp
broker = ContainerBroker(sys.argv[1])
now = Timestamp.now().internal
records = [dict(name=n, created_at=now, size=1, content_type='text/plain', etag='9dd4e461268c8034f5c8564e155c67a6',
    deleted=0, storage_policy_index=0) for n in sys.stdin.read().split('\0')]
for at in range(0, len(records), 5000):
    broker.merge_items(records[at:at + 5000])
`
	sum := md5.Sum([]byte(swiftHashSalt + "/AUTH_test/" + container + swiftHashSalt))
	digest := hex.EncodeToString(sum[:])
	found, err := filepath.Glob(s.dir + "/srv/d1/containers/*/*/" + digest + "/" + digest + ".db")
	if err != nil || len(found) != 1 {
		t.Fatalf("the databases of %s are %q, %v", container, found, err)
	}
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", script, found[0], s.dir+"/etc")
	cmd.Env = s.environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: swiftAccount(t).credential()}
	cmd.Stdin = strings.NewReader(strings.Join(names, "\x00"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("planting objects: %v\n%s", err, out)
	}
}

// swiftOwner is whom the servers run as.
type swiftOwner struct {
	name     string
	uid, gid int
}

// credential is nil where there is nothing to change.
func (o swiftOwner) credential() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	return &syscall.Credential{Uid: uint32(o.uid), Gid: uint32(o.gid)}
}

func swiftAccount(t testing.TB) swiftOwner {
	t.Helper()
	u, err := user.Current()
	if err == nil && os.Geteuid() == 0 {
		u, err = user.Lookup("swift")
	}
	var o swiftOwner
	if err == nil {
		o.name = u.Username
		if o.uid, err = strconv.Atoi(u.Uid); err == nil {
			o.gid, err = strconv.Atoi(u.Gid)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func swiftFreePorts(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // all at once, so that none comes twice
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

func (s *Swift) environment() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + s.dir, "LANG=C.UTF-8"}
}

// configure writes what the servers read. Their time limits are those of a slow machine, and listings are brought up to
// date before a write returns: within a second is the default.
func (s *Swift) configure(owner swiftOwner) error {
	for _, dir := range []string{"etc", "srv/d1", "cache", "lock"} {
		if err := os.MkdirAll(filepath.Join(s.dir, dir), 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{
		"password":        swiftPassword + "\n",
		"reader-password": swiftReaderPassword + "\n",
		"etc/swift.conf": "[swift-hash]\nswift_hash_path_prefix = " + swiftHashSalt + "\nswift_hash_path_suffix = " + swiftHashSalt +
			"\n[storage-policy:0]\nname = gold\ndefault = yes\n[storage-policy:1]\nname = silver\n",
		"etc/proxy-server.conf": s.server(owner, s.ports.proxy) + s.proxy(),
	}
	for kind, port := range map[string]int{"account": s.ports.account, "container": s.ports.container, "object": s.ports.object} {
		files["etc/"+kind+"-server.conf"] = s.server(owner, port) + fmt.Sprintf(`devices = %[1]s/srv
mount_check = false
disable_fallocate = true
container_update_timeout = 60
conn_timeout = 20
node_timeout = 60
[pipeline:main]
pipeline = %[2]s-server
[app:%[2]s-server]
use = egg:swift#%[2]s
recon_cache_path = %[1]s/cache
recon_lock_path = %[1]s/lock
`, s.dir, kind)
		ring, err := swiftRing(port)
		if err != nil {
			return err
		}
		files["etc/"+kind+".ring.gz"] = string(ring)
		files["etc/"+kind+"-1.ring.gz"] = string(ring) // of the second policy; only objects have one
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return filepath.WalkDir(s.dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil && os.Geteuid() == 0 {
			err = os.Chown(path, owner.uid, owner.gid)
		}
		return err
	})
}

func (s *Swift) server(owner swiftOwner, port int) string {
	return fmt.Sprintf("[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = %d\nworkers = 0\nswift_dir = %s/etc\nuser = %s\nlog_level = INFO\n", port, s.dir, owner.name)
}

// proxy is a pipeline of the usual middlewares.
func (s *Swift) proxy() string {
	var b strings.Builder
	b.WriteString("[pipeline:main]\npipeline = catch_errors gatekeeper healthcheck cache listing_formats bulk tempauth copy slo dlo versioned_writes symlink proxy-server\n")
	b.WriteString("[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nnode_timeout = 60\nrecoverable_node_timeout = 60\nconn_timeout = 20\nerror_suppression_limit = 1000000\n")
	fmt.Fprintf(&b, "[filter:tempauth]\nuse = egg:swift#tempauth\nuser_test_tester = %s .admin\nuser_test_reader = %s\n", swiftPassword, swiftReaderPassword)
	fmt.Fprintf(&b, "[filter:cache]\nuse = egg:swift#memcache\nmemcache_servers = 127.0.0.1:%d\n", s.ports.memcached)
	b.WriteString("[filter:versioned_writes]\nuse = egg:swift#versioned_writes\nallow_versioned_writes = true\nallow_object_versioning = true\n")
	for _, filter := range []string{"catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "copy", "slo", "dlo", "symlink"} {
		fmt.Fprintf(&b, "[filter:%s]\nuse = egg:swift#%s\n", filter, filter)
	}
	return b.String()
}

// swiftRing is the file, in version 1 of its format (swift/common/ring/ring.py), of a ring of one device with one replica:
// "R1NG", version and length of the description in network order, the description, and for each part the device's number.
func swiftRing(port int) ([]byte, error) {
	const partPower = 4
	description, err := json.Marshal(map[string]any{
		"byteorder": "little", "part_shift": 32 - partPower, "replica_count": 1, "version": 1,
		"devs": []map[string]any{{
			"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port,
			"device": "d1", "weight": 100.0, "meta": "",
		}},
	})
	if err != nil {
		return nil, err
	}
	var file bytes.Buffer
	z := gzip.NewWriter(&file)
	head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16([]byte("R1NG"), 1), uint32(len(description)))
	for _, part := range [][]byte{head, description, make([]byte, 2<<partPower)} {
		if _, err := z.Write(part); err != nil {
			return nil, err
		}
	}
	err = z.Close()
	return file.Bytes(), err
}

// run starts the processes from a thread that lives as long as they: the kernel kills them when it ends, so that they do
// not outlive a test that is killed.
func (s *Swift) run(t testing.TB, owner swiftOwner) {
	t.Helper()
	started := make(chan error)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var running []*exec.Cmd
		err := func() error {
			for _, program := range swiftPrograms {
				run, args := "/usr/bin/"+program, []string{"-u", owner.name, "-l", "127.0.0.1", "-p", strconv.Itoa(s.ports.memcached), "-m", "32"}
				if kind, ok := strings.CutPrefix(program, "swift-"); ok {
					args = []string{"-c", swiftMain, s.dir + "/etc", "/usr/bin/" + program, s.dir + "/etc/" + kind + ".conf", "-v"}
					run = "/usr/bin/python3"
				}
				log, err := os.Create(s.dir + "/" + program + ".log")
				if err != nil {
					return err
				}
				cmd := exec.Command(run, args...)
				cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = s.environment(), s.dir, log, log
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner.credential(), Pdeathsig: syscall.SIGKILL}
				err = cmd.Start()
				log.Close()
				if err != nil {
					return err
				}
				running = append(running, cmd)
			}
			return nil
		}()
		started <- err
		<-stop
		for _, cmd := range running {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	t.Cleanup(func() {
		close(stop)
		wg.Wait()
	})
	if err := <-started; err != nil {
		t.Fatal(err)
	}
}

// await returns when an object can be stored.
func (s *Swift) await(t testing.TB) {
	t.Helper()
	const patience = 2 * time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var last error
	for {
		b, err := storage.Open(ctx, s.Config("ready"))
		if err == nil {
			err = b.Create(ctx, "ready", strings.NewReader("x"))
		}
		if err == nil {
			err = b.Delete(ctx, "ready")
		}
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			logs, _ := filepath.Glob(s.dir + "/*.log")
			for _, log := range logs {
				text, _ := os.ReadFile(log)
				t.Logf("%s:\n%s", filepath.Base(log), text[max(0, len(text)-2000):])
			}
			t.Fatalf("the server is not ready after %v: %v", patience, last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Do sends a request to the account, with a token of User, and returns status and headers.
func (s *Swift) Do(t testing.TB, method, path string, header map[string]string) (int, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.AuthURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-User", s.User)
	req.Header.Set("X-Auth-Key", swiftPassword)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if req, err = http.NewRequestWithContext(t.Context(), method, resp.Header.Get("X-Storage-Url")+path, nil); err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", resp.Header.Get("X-Auth-Token"))
	for k, v := range header {
		req.Header.Set(k, v)
	}
	if resp, err = http.DefaultClient.Do(req); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode, resp.Header
}
