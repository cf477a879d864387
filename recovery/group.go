package recovery

import (
	"sync"

	"pitr/basebackup"
)

// group is what one worker writes alone, as long as there are others for the others: a large file, or small ones that are
// next to each other. Writes to one file wait for each other in the kernel, with spinning processors, and a backup deals the
// frames of one file to several packs, so that workers that took runs as they come would mostly want the same file.
type group struct {
	frames []basebackup.Frame
	uses   []use // of the frame of the same index
	runs   []basebackup.Run
}

// groupBytes is about how much is written in a group of small files.
const groupBytes = 16 << 20

// groups shares the work of a window out to workers.
type groups struct {
	mu   sync.Mutex
	left []*group // that have runs nobody took
	own  int      // of them, those at the front that have a worker
}

// newGroups makes them of the frames that files lack. Files whose content is in one frame are in one group.
func newGroups(h *basebackup.Header, files []*file) *groups {
	s := new(groups)
	g := new(group)
	bytes := int64(0)
	end := func() {
		if len(g.frames) > 0 {
			g.runs = basebackup.Runs(h, g.frames)
			s.left = append(s.left, g)
		}
		g, bytes = new(group), 0
	}
	for _, f := range files {
		at := int64(0)
		for i, x := range f.entry.Extents {
			if !x.Zeros && !f.has(i) {
				if bytes >= groupBytes && g.uses[len(g.uses)-1].file != f && g.frames[len(g.frames)-1] != x.Frame {
					end()
				}
				g.frames, g.uses = append(g.frames, x.Frame), append(g.uses, use{f, i, at})
				bytes += x.Length
				f.left++
			}
			at += x.Length
		}
	}
	end()
	return s
}

// next gives a worker its next run: of the group it is at (nil: none yet), of one that is nobody's, or of somebody else's
// when there is no such one. It is nil when all are taken.
func (s *groups) next(at *group) (*group, *basebackup.Run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at == nil || len(at.runs) == 0 {
		switch {
		case s.own < len(s.left):
			at = s.left[s.own]
			s.own++
		case len(s.left) > 0:
			at = s.left[0]
			for _, g := range s.left {
				if len(g.runs) > len(at.runs) {
					at = g
				}
			}
		default:
			return nil, nil
		}
	}
	run := &at.runs[0]
	if at.runs = at.runs[1:]; len(at.runs) == 0 {
		for i, g := range s.left {
			if g == at {
				s.left = append(s.left[:i], s.left[i+1:]...)
				s.own--
				break
			}
		}
	}
	return at, run
}
