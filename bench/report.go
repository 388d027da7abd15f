//go:build linux

package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// figure is one row of the table.
type figure struct {
	budget  string // the row of the goals
	what    string
	goal    goal
	unit    unit
	accessd float64
	openssh float64   // 0: there is no such thing
	ratios  []float64 // accessd's to OpenSSH's, of each round
	note    string    // how it was measured, where the page does not say it for all
}

// named says what the figure is.
func (f figure) named(budget, what string, u unit, g goal) figure {
	f.budget, f.what, f.unit, f.goal = budget, what, u, g
	return f
}

// remark adds a note.
func (f figure) remark(format string, args ...any) figure {
	f.note = fmt.Sprintf(format, args...)
	return f
}

// unit goes behind a value.
type unit string

const (
	perSecond unit = "/s"
	millis    unit = " ms"
	micros    unit = " µs"
	mibPerS   unit = " MiB/s"
	cpuPerGiB unit = " CPU s/GiB"
	kb        unit = " KB"
	mib       unit = " MiB"
	mb        unit = " MB"
	seconds   unit = " s"
)

// number prints v with three digits that matter, and thousands apart.
func number(v float64) string {
	switch abs := math.Abs(v); {
	case math.IsNaN(v):
		return "–"
	case abs >= 1000:
		s := fmt.Sprintf("%.0f", v)
		for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		return s
	case abs >= 100:
		return fmt.Sprintf("%.0f", v)
	case abs >= 10:
		return fmt.Sprintf("%.1f", v)
	case abs >= 0.1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

// goal is what a figure is held to. The zero goal holds to nothing.
type goal struct {
	limit  float64
	atMost bool // else at least
	ratio  bool // of the ratio, else of accessd's value
}

func ratioAtLeast(limit float64) goal { return goal{limit: limit, ratio: true} }
func ratioAtMost(limit float64) goal  { return goal{limit: limit, ratio: true, atMost: true} }
func atLeast(limit float64) goal      { return goal{limit: limit} }
func atMost(limit float64) goal       { return goal{limit: limit, atMost: true} }

// goalText says the goal in words.
func (f figure) goalText() string {
	g := f.goal
	if g == (goal{}) {
		return "–"
	}
	sign := "≥"
	if g.atMost {
		sign = "≤"
	}
	if g.ratio {
		return fmt.Sprintf("%s %g×", sign, g.limit)
	}
	limit := strings.TrimRight(strings.TrimRight(number(g.limit), "0"), ".")
	if g.limit >= 100 {
		limit = number(g.limit)
	}
	return sign + " " + limit + string(f.unit)
}

func (f figure) value(v float64) string { return number(v) + string(f.unit) }

// met says whether the goal is reached, by the median that the table shows.
func (f figure) met() string {
	g, v := f.goal, f.accessd
	if g.ratio {
		v = median(f.ratios)
	}
	switch {
	case g == (goal{}):
		return "–"
	case g.atMost && v <= g.limit, !g.atMost && v >= g.limit:
		return "yes"
	}
	return "**no**"
}

// ratioText prints the median ratio and, of several, the range they lay in.
func (f figure) ratioText() string {
	switch len(f.ratios) {
	case 0:
		return "–"
	case 1:
		return fmt.Sprintf("%s×", number(f.ratios[0]))
	}
	return fmt.Sprintf("%s× (%s–%s)", number(median(f.ratios)), number(slices.Min(f.ratios)), number(slices.Max(f.ratios)))
}

// report collects what was measured.
type report struct {
	machine machine
	quick   bool
	only    string
	start   time.Time
	load    load
	figures []figure
	missing []string
}

// add takes a scenario's figures, or why there are none.
func (r *report) add(s scenario, figures []figure, err error) {
	r.figures = append(r.figures, figures...)
	if err != nil {
		r.missing = append(r.missing, fmt.Sprintf("%s (goal %s): %v", s.name, s.budget, err))
	}
}

func (r *report) write(w io.Writer) {
	fmt.Fprintf(w, "# Benchmarks\n\n")
	fmt.Fprintf(w, "Measured by `make bench` on %s, in %.0f s; nothing on this page was typed by hand.\n",
		r.start.UTC().Format("2006-01-02 15:04 MST"), time.Since(r.start).Seconds())
	if r.quick {
		fmt.Fprintf(w, "**Quick run**: small counts, so the figures are rough.\n")
	}
	if r.only != "" {
		fmt.Fprintf(w, "**Partial run**: only the scenarios that match `%s`.\n", r.only)
	}
	fmt.Fprintln(w)
	r.machine.write(w)
	fmt.Fprintf(w, "- other work on the machine during the run: %.0f %% of its cores\n\n", 100*r.load.foreign())
	fmt.Fprint(w, `The yardstick is stock OpenSSH in the same run: an sshd as proxy, "ssh -N -R" as tunnel, a second sshd as
node, without PAM and reverse look-ups; on both nodes the login's shell is /bin/sh and its home is empty where root
runs this. Both sides are measured in turn, all parts on this machine. Values are medians; the ratio is the median
of each round's own ratio, with the range of the rounds. Ratios and CPU seconds travel to other machines; absolute
rates do not.

`)
	if len(r.figures) > 0 {
		fmt.Fprint(w, "| # | what | goal | accessd | OpenSSH | ratio | met |\n|---|---|---|---|---|---|---|\n")
	}
	for _, f := range r.figures {
		openssh := "–"
		if f.openssh != 0 {
			openssh = f.value(f.openssh)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s |\n", f.budget, f.what, f.goalText(), f.value(f.accessd), openssh, f.ratioText(), f.met())
	}
	r.writeNotes(w)
}

// writeNotes prints how things were measured and what was not.
func (r *report) writeNotes(w io.Writer) {
	var notes []string
	for _, f := range r.figures {
		if f.note != "" {
			notes = append(notes, fmt.Sprintf("- %s, %s: %s", f.budget, f.what, f.note))
		}
	}
	if len(notes) > 0 {
		fmt.Fprintf(w, "\n## How\n%s\n", strings.Join(notes, "\n"))
	}
	missing := append(slices.Clip(r.missing),
		"goal 11 (dead nodes, changed networks, leaks) and goal 12 (hostile clients): tests hold them, not this program")
	fmt.Fprintf(w, "\n## Not measured\n- %s\n", strings.Join(missing, "\n- "))
}
