package auth

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// sheet is a log in memory: what each entry is, and its time in seconds.
type sheet struct {
	names []string
	times []int
}

// page does as a log does: the newest before a place, or the oldest after it.
func (s *sheet) page(place string, limit int, newest bool) events.Page {
	n := uint64(len(s.names))
	from, to := uint64(0), n
	at, err := strconv.ParseUint(place, 10, 64)
	if err == nil && newest {
		to = at
	} else if err == nil {
		from = at
	}
	page := events.Page{Before: fmt.Sprint(from), After: fmt.Sprint(to)}
	if newest {
		page.Before = ""
		if to > uint64(limit) {
			from = to - uint64(limit)
			page.Before = fmt.Sprint(from)
		}
	} else if from+uint64(limit) < to {
		to = from + uint64(limit)
		page.After, page.More = fmt.Sprint(to), true
	}
	for i := from; i < to; i++ {
		page.Events, page.Entries = append(page.Events, []byte(s.names[i])), append(page.Entries, i)
	}
	return page
}

// share is the page with its ranks.
func (s *sheet) share(place string, limit int, newest bool) share {
	sh := share{page: s.page(place, limit, newest)}
	for i, at := range sh.page.Entries {
		r := rank{time.Unix(int64(s.times[at]), 0), s.names[at]}
		if i > 0 && r.compare(sh.ranks[i-1]) < 0 {
			r = sh.ranks[i-1]
		}
		sh.ranks = append(sh.ranks, r)
	}
	return sh
}

// Whatever the pages' sizes, and however late events came into their logs, pages
// of several logs give each event once, and those of one log in its order.
func TestPagesOfSeveralLogs(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		sheets := make([]*sheet, 1+r.IntN(4))
		for i := range sheets {
			sheets[i] = &sheet{}
			for n := range r.IntN(40) {
				late := 0
				if r.IntN(4) == 0 {
					late = r.IntN(30)
				}
				sheets[i].names = append(sheets[i].names, fmt.Sprintf("%d.%02d", i, n))
				sheets[i].times = append(sheets[i].times, n-late)
			}
		}
		for _, newest := range []bool{true, false} {
			got := turnPages(t, sheets, r, newest)
			for i, s := range sheets {
				own := slices.DeleteFunc(slices.Clone(got), func(name string) bool { return !strings.HasPrefix(name, fmt.Sprint(i, ".")) })
				if !slices.Equal(own, s.names) {
					t.Fatalf("seed %d, newest %v: log %d gave %q, want %q", seed, newest, i, own, s.names)
				}
			}
		}
	}
}

// turnPages reads all there is.
func turnPages(t *testing.T, sheets []*sheet, r *rand.Rand, newest bool) (got []string) {
	t.Helper()
	places := make([]string, len(sheets))
	for range 1000 {
		limit := 1 + r.IntN(20)
		shares := make([]share, len(sheets))
		for i, s := range sheets {
			shares[i] = s.share(places[i], limit, newest)
		}
		list, kept := merge(shares, limit, newest)
		if len(list) == 0 {
			return got
		}
		var texts []string
		for _, b := range list {
			texts = append(texts, string(b))
		}
		for i, s := range shares {
			before, after := s.beside(kept[i], newest)
			if places[i] = after; newest {
				places[i] = before
			}
		}
		if newest {
			got = append(texts, got...)
		} else {
			got = append(got, texts...)
		}
	}
	t.Fatal("the pages do not end")
	return nil
}

// A page has what is newest in any log, or oldest, whichever log it is in.
func TestPagesAreMergedByTime(t *testing.T) {
	a := &sheet{names: []string{"a1", "a3", "a5", "a7"}, times: []int{1, 3, 5, 7}}
	b := &sheet{names: []string{"b2", "b4", "b6", "late", "b8"}, times: []int{2, 4, 6, 0, 8}}
	same := &sheet{names: []string{"a5"}, times: []int{5}} // shipped to two authorities
	for _, c := range []struct {
		limit  int
		newest bool
		want   string
	}{
		{4, true, "b6 late a7 b8"},
		{20, true, "a1 b2 a3 b4 a5 b6 late a7 b8"},
		{3, false, "a1 b2 a3"},
		{20, false, "a1 b2 a3 b4 a5 b6 late a7 b8"},
	} {
		shares := []share{a.share("", c.limit, c.newest), b.share("", c.limit, c.newest), same.share("", c.limit, c.newest)}
		list, _ := merge(shares, c.limit, c.newest)
		var got []string
		for _, b := range list {
			got = append(got, string(b))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%d, newest %v: %q, want %q", c.limit, c.newest, got, c.want)
		}
	}
}

// A merged page fits into a message, however long its events are.
func TestMergedPageIsBounded(t *testing.T) {
	var sheets [2]sheet
	for i := range sheets {
		for n := range 40 {
			sheets[i].names = append(sheets[i].names, fmt.Sprint(i, n, strings.Repeat("x", 60_000)))
			sheets[i].times = append(sheets[i].times, n)
		}
	}
	list, kept := merge([]share{sheets[0].share("", 100, true), sheets[1].share("", 100, true)}, 100, true)
	size := 0
	for _, b := range list {
		size += len(b)
	}
	if size > pageBytes || size < pageBytes/2 || kept[0]+kept[1] != len(list) {
		t.Errorf("%d bytes of %v events, want at most %d", size, kept, pageBytes)
	}
}

func TestParsePlaces(t *testing.T) {
	own, other := names.NodeID("11111111-1111-4111-8111-111111111111"), names.NodeID("22222222-2222-4222-8222-222222222222")
	for _, text := range []string{"", "7", string(other) + ":7", string(own) + ":7," + string(other) + ":0"} {
		p, err := parsePlaces("before", text, own)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if got := p.format(own); got != text {
			t.Errorf("%q is written %q again", text, got)
		}
	}
	many := make([]string, maxPeers+2)
	for i := range many {
		many[i] = string(names.NewNodeID()) + ":1"
	}
	for _, text := range []string{
		"x:1", string(own) + ":", string(own) + ":-1", string(own) + ":1," + string(own) + ":2", string(own) + ":1,", ":",
		string(own) + ":18446744073709551616", strings.Join(many, ","),
	} {
		if _, err := parsePlaces("before", text, own); !fault.Is(err, fault.BadInput) {
			t.Errorf("%q: %v, want bad input", text, err)
		}
	}
}
