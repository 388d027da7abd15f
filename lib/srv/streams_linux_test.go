package srv

import (
	"bytes"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/term"
)

// TestTerminalOutputComesInLargePieces: what a process has written is not dealt with
// 4 KiB at a time, and a little of it is not waited with.
func TestTerminalOutputComesInLargePieces(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	if _, err := term.MakeRaw(int(slave.Fd())); err != nil { // a line feed stays one
		t.Fatal(err)
	}
	out, buf := terminalOutput{master}, make([]byte, bufferSize)
	for _, size := range []int{1, gatherFrom, 7 << 10} {
		text := bytes.Repeat([]byte("accessd\n"), size/8+1)[:size]
		if _, err := slave.Write(text); err != nil {
			t.Fatal(err)
		}
		var got []byte
		pieces := 0
		for len(got) < size {
			n, err := out.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, buf[:n]...)
			pieces++
		}
		if !bytes.Equal(got, text) {
			t.Errorf("of %d bytes %d came, or others", size, len(got))
		}
		if pieces != 1 { // a terminal holds 8 KiB that nobody has read
			t.Errorf("%d bytes came in %d pieces, want one", size, pieces)
		}
	}
}
