package recovery_test

import (
	"testing"

	"pitr/internal/postgres/pgtest"
	"pitr/recovery"
)

// What its parent has for good reason, or by mistake, is not in the way of a copy.
func TestParentsSettings(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1, Conf: map[string]string{"recovery_min_apply_delay": "1h"}})
	h.Exec("CREATE TABLE t (v text)")
	h.Conf(map[string]string{"huge_pages": "on"}) // of which there are none here, as where the parent has them all
	h.backup()
	h.Exec("INSERT INTO t VALUES ('a')")
	h.flush()
	r := h.restore(recovery.Target{}, recovery.Destination{})
	if got := rows(r.Server); got != "a" {
		t.Errorf("rows %q", got)
	}
}

// A standby without a target goes along when another server is promoted.
func TestStandbyFollowsPromotion(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1, Conf: map[string]string{"wal_retrieve_retry_interval": "100ms"}})
	h.Exec("CREATE TABLE t (v text)", "INSERT INTO t VALUES ('1')")
	h.backup()
	h.flush()
	standby := h.restore(recovery.Target{}, recovery.Destination{Standby: true})
	h.Exec("INSERT INTO t VALUES ('2')")
	h.flush()
	h.stop(h.Server)
	next := h.restore(recovery.Target{}, recovery.Destination{Archive: true})
	next.Exec("INSERT INTO t VALUES ('3')")
	h.flushOf(next.Server)
	standby.Await("SELECT count(*) = 3 FROM t")
}
