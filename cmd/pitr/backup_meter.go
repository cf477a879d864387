package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// meterEvery is how often a plain line of progress is printed.
const meterEvery = 10 * time.Second

// meter shows the progress of long work on standard error: a bar on a terminal, lines otherwise, nothing with --quiet.
// Any goroutine may use it.
type meter struct {
	a    *app
	bars bool

	mu     sync.Mutex
	what   string
	began  time.Time
	last   time.Time
	shown  int64
	p      *mpb.Progress
	bar    *mpb.Bar
	closed bool
}

func (a *app) newMeter() *meter { return &meter{a: a, bars: isTerminal(a.err)} }

// set shows what is being done, and how much of it is done; total is 0 where it is not known.
func (m *meter) set(what string, n, total int64) {
	if m.a.quiet {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed && what == m.what {
		return // a straggler
	}
	if what != m.what {
		m.end()
		m.what, m.began, m.last, m.shown, m.closed = what, time.Now(), time.Time{}, 0, false
	}
	if m.bars {
		m.draw(n, total)
		return
	}
	switch {
	case m.last.IsZero():
		fmt.Fprintln(m.a.err, printable(what))
	case time.Since(m.last) < meterEvery || n == m.shown:
		return
	default:
		rate := float64(n) / time.Since(m.began).Seconds()
		text := fmt.Sprintf("%s: %s", what, size(n))
		if total > 0 {
			text += fmt.Sprintf(" of %s (%d %%)", size(total), min(n*100/total, 100))
		}
		text += fmt.Sprintf(", %s/s", size(int64(rate)))
		if total > n && rate > 0 {
			text += fmt.Sprintf(", %v left", time.Duration(float64(total-n)/rate*float64(time.Second)).Round(time.Second))
		}
		fmt.Fprintln(m.a.err, printable(text))
	}
	m.last, m.shown = time.Now(), n
}

func (m *meter) draw(n, total int64) {
	if m.p == nil {
		m.p = mpb.New(mpb.WithOutput(m.a.err), mpb.WithWidth(60), mpb.WithAutoRefresh())
		m.bar = m.p.AddBar(0,
			mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name(printable(m.what)+" ")),
			mpb.AppendDecorators(
				decor.CountersKiloByte("% .1f / % .1f"), decor.Name(" "),
				decor.AverageSpeed(decor.SizeB1000(0), "% .1f"), decor.Name(" "),
				decor.AverageETA(decor.ET_STYLE_GO),
			))
	}
	m.bar.SetTotal(max(total, n+1), false)
	m.bar.SetCurrent(n)
}

// close takes the bar away. set begins anew with something else.
func (m *meter) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.end()
	m.closed = true
}

func (m *meter) end() {
	if m.p == nil {
		return
	}
	m.bar.Abort(true)
	m.p.Wait()
	m.p, m.bar = nil, nil
}

// isTerminal tells whether somebody is likely to be at the other end of a stream: a character device, but not the one
// that nobody is at.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}
