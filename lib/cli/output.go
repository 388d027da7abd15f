package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
)

// format is the value of --format.
type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
)

// addFormat adds --format to c.
func addFormat(c *cobra.Command, f *format) {
	*f = formatTable
	c.Flags().Var(f, "format", "table, json or yaml")
	_ = c.Flags().SetAnnotation("format", valuesAnnotation, []string{string(formatTable), string(formatJSON), string(formatYAML)}) // the flag exists
}

// String returns the format's name.
func (f *format) String() string { return string(*f) }

// Type returns the word the help text uses for the value.
func (f *format) Type() string { return "FORMAT" }

// Set reads a flag's value.
func (f *format) Set(s string) error {
	switch v := format(s); v {
	case formatTable, formatJSON, formatYAML:
		*f = v
		return nil
	}
	return fmt.Errorf("%q: want table, json or yaml", s)
}

// list is a list of messages and how a table shows one.
type list[M proto.Message] struct {
	head []string
	rows []M
	row  func(M) []string
}

// print writes l to w in format f.
func (l list[M]) print(w io.Writer, f format) error {
	if f == formatTable {
		rows := make([][]string, len(l.rows))
		for i, m := range l.rows {
			rows[i] = l.row(m)
		}
		return printTable(w, l.head, rows)
	}
	all := make([]json.RawMessage, len(l.rows))
	for i, m := range l.rows {
		b, err := messageJSON(m)
		if err != nil {
			return err
		}
		all[i] = b
	}
	return printValue(w, f, all)
}

// messageJSON returns m as JSON with the field names of the .proto file.
func messageJSON(m proto.Message) (json.RawMessage, error) {
	return protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
}

// printMessage writes m to w as JSON or YAML.
func printMessage(w io.Writer, f format, m proto.Message) error {
	b, err := messageJSON(m)
	if err != nil {
		return err
	}
	return printValue(w, f, b)
}

// printValue writes v, which encodes to JSON, as JSON or YAML.
func printValue(w io.Writer, f format, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if f == formatYAML {
		err = yamlFromJSON(&out, b)
	} else {
		err = json.Indent(&out, b, "", "  ")
		out.WriteByte('\n')
	}
	if err != nil {
		return err
	}
	_, err = w.Write(out.Bytes())
	return err
}

// yamlFromJSON writes the JSON value b as YAML; JSON is YAML's flow style, so
// only the style changes.
func yamlFromJSON(w io.Writer, b []byte) error {
	var n yaml.Node
	if err := yaml.Unmarshal(b, &n); err != nil {
		return err
	}
	block(&n)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&n); err != nil {
		return err
	}
	return enc.Close()
}

func block(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		block(c)
	}
}

// printTable writes rows under head in aligned columns. Text from peers is
// escaped, so that it can neither move the cursor nor add a row.
func printTable(w io.Writer, head []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(head, "\t"))
	for _, r := range rows {
		shown := make([]string, len(r))
		for i, cell := range r {
			shown[i] = dash(events.Display(cell))
		}
		fmt.Fprintln(tw, strings.Join(shown, "\t"))
	}
	return tw.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// pairs shows a map as "k=v,k=v" in the order of its keys.
func pairs(m map[string]string) string {
	out := make([]string, 0, len(m))
	for _, k := range sortedKeys(m) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

// parsePairs reads "k=v,k=v" given to flag.
func parsePairs(flag, s string) (map[string]string, error) {
	m := map[string]string{}
	if s == "" {
		return m, nil
	}
	for p := range strings.SplitSeq(s, ",") {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, fault.New(fault.BadInput, "--%s: %q: want key=value", flag, p)
		}
		if _, twice := m[k]; twice {
			return nil, fault.New(fault.BadInput, "--%s: %q: the key stands twice", flag, p)
		}
		m[k] = v
	}
	return m, nil
}
