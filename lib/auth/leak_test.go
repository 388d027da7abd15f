package auth

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// leakPatience is how long goroutines may take to end after the last test:
// etcd's members read from each other under a deadline of 5 s, and one that is
// closed in the middle of a read notices only then.
const leakPatience = 15 * time.Second

// TestMain makes sure that nothing an authority started outlives it.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		err := goleak.Find()
		for began := time.Now(); err != nil && time.Since(began) < leakPatience; {
			err = goleak.Find() // which waits a while itself
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
