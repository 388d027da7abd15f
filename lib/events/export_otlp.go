package events

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"unicode/utf8"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/accessd/accessd/lib/defaults"
)

// appendOTLP appends events as one line of JSON, as OTLP has it: camel case and
// numbers for enumerations. An ExportLogsServiceRequest looks the same.
func appendOTLP(dst []byte, events []Event) ([]byte, error) {
	if len(events) == 0 {
		return dst, nil
	}
	line, err := protojson.MarshalOptions{UseEnumNumbers: true}.Marshal(otlpLogs(events))
	if err != nil {
		return dst, err
	}
	var compact bytes.Buffer // the encoder varies its white space on purpose
	if err := json.Compact(&compact, line); err != nil {
		return dst, err
	}
	for _, r := range compact.String() { // what is not ASCII stands in strings
		if r < utf8.RuneSelf {
			dst = append(dst, byte(r))
			continue
		}
		text := appendText(nil, string(r))
		dst = append(dst, text[1:len(text)-1]...)
	}
	return append(dst, '\n'), nil
}

// encodeOTLP returns events as an OTLP message in protobuf.
func encodeOTLP(events []Event) ([]byte, error) { return proto.Marshal(otlpLogs(events)) }

// otlpLogs returns events by the process that emitted them, which is a resource.
func otlpLogs(events []Event) *logspb.LogsData {
	out := &logspb.LogsData{}
	at := map[string]int{}
	for _, e := range events {
		i, known := at[e.ServerID]
		if !known {
			i = len(out.GetResourceLogs())
			at[e.ServerID] = i
			out.ResourceLogs = append(out.ResourceLogs, otlpResource(e))
		}
		scope := out.GetResourceLogs()[i].GetScopeLogs()[0]
		scope.LogRecords = append(scope.LogRecords, otlpRecord(e))
	}
	return out
}

func otlpResource(e Event) *logspb.ResourceLogs {
	r := &resourcepb.Resource{Attributes: []*commonpb.KeyValue{otlpPair("service.name", "accessd")}}
	for _, a := range []struct{ key, value string }{
		{"service.namespace", e.ClusterName}, {"service.instance.id", e.ServerID}, {"host.name", e.ServerHostname},
	} {
		if a.value != "" {
			r.Attributes = append(r.Attributes, otlpPair(a.key, a.value))
		}
	}
	scope := &logspb.ScopeLogs{Scope: &commonpb.InstrumentationScope{Name: "accessd/audit", Version: defaults.Version}}
	return &logspb.ResourceLogs{Resource: r, ScopeLogs: []*logspb.ScopeLogs{scope}}
}

func otlpRecord(e Event) *logspb.LogRecord {
	when := uint64(max(e.Time.UnixNano(), 0))
	r := &logspb.LogRecord{
		TimeUnixNano: when, ObservedTimeUnixNano: when, EventName: string(e.Name),
		SeverityNumber: logspb.SeverityNumber_SEVERITY_NUMBER_INFO, SeverityText: "INFO",
		Body: otlpValue(e.summary()),
	}
	if !e.Success {
		r.SeverityNumber, r.SeverityText = logspb.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
	}
	add := func(key string, value any) { r.Attributes = append(r.Attributes, otlpPair(key, value)) }
	add("event", string(e.Name))
	add("code", e.Code)
	add("uid", e.UID)
	for _, f := range e.common() {
		if *f.text != "" {
			add(f.key, *f.text)
		}
	}
	add("success", e.Success)
	if e.Error != "" {
		add("error", e.Error)
	}
	for _, key := range slices.Sorted(maps.Keys(e.Fields)) {
		add(key, e.Fields[key])
	}
	return r
}

func otlpPair(key string, value any) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: otlpValue(value)}
}

func otlpValue(value any) *commonpb.AnyValue {
	switch v := value.(type) {
	case string:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: v}}
	case bool:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: v}}
	case int64:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: v}}
	case []string:
		list := &commonpb.ArrayValue{}
		for _, s := range v {
			list.Values = append(list.Values, otlpValue(s))
		}
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: list}}
	case map[string]string:
		list := &commonpb.KeyValueList{}
		for k, s := range v {
			list.Values = append(list.Values, otlpPair(k, s))
		}
		slices.SortFunc(list.Values, func(a, b *commonpb.KeyValue) int { return cmp.Compare(a.GetKey(), b.GetKey()) })
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_KvlistValue{KvlistValue: list}}
	}
	return &commonpb.AnyValue{}
}
