package web

import (
	"bytes"
	"embed"
	"html/template"
	"io/fs"
	"net/http"

	"go.uber.org/zap"
)

// The pages have nothing from elsewhere, and are whole without JavaScript but for
// passkeys.
//
//go:embed pages
var pagesFS embed.FS

// A page is one answer in HTML: the template of its name, inside the layout.
type page struct {
	status int    // of HTTP; 0 is 200
	name   string // of the template, without ".html"
	title  string
	data   any
	// script is the path of a script of ours that the page may run, or "" for
	// none.
	script string
	// onward, when it is set, is where a browser goes by itself. It is a page of
	// somebody else's, so it is no answer to a form: Chromium holds those to
	// form-action all the way.
	onward string
}

// layout is what the layout shows of a page.
type layout struct {
	Title, Script string
	Data          any
}

// policy is what a browser may do with a page, and with whatever slipped into
// it: show our style, send our forms to us.
const policy = "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// pages renders the pages.
type pages struct {
	byName map[string]*template.Template
	log    *zap.Logger
}

func newPages(log *zap.Logger) (*pages, error) {
	files, err := fs.Glob(pagesFS, "pages/*.html")
	if err != nil {
		return nil, err
	}
	p := &pages{byName: map[string]*template.Template{}, log: log}
	for _, f := range files {
		name := f[len("pages/") : len(f)-len(".html")]
		if p.byName[name], err = template.ParseFS(pagesFS, "pages/layout.html", f); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// show answers with pg. It is rendered whole before a byte of it goes out.
func (p *pages) show(w http.ResponseWriter, pg page) {
	var out bytes.Buffer
	if err := p.byName[pg.name].ExecuteTemplate(&out, "layout.html", layout{pg.title, pg.script, pg.data}); err != nil {
		p.log.Error("cannot render a page", zap.String("page", pg.name), zap.Error(err))
		answer(w, http.StatusInternalServerError, "internal error")
		return
	}
	h := w.Header()
	csp := policy
	if pg.script != "" {
		csp += "; script-src 'self'; connect-src 'self'"
	}
	h.Set("Content-Security-Policy", csp)
	if pg.onward != "" {
		h.Set("Refresh", "0; url="+pg.onward)
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	if pg.status != 0 {
		w.WriteHeader(pg.status)
	}
	_, _ = w.Write(out.Bytes()) // an error means that the client has gone
}

// asset serves one embedded file.
func asset(name, kind string) (http.HandlerFunc, error) {
	data, err := pagesFS.ReadFile("pages/" + name)
	if err != nil {
		return nil, err
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(data) // an error means that the client has gone
	}, nil
}

// message is the data of the page "message": a few words.
type message struct{ Text, Code, Hint string }
