package auth

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain makes sure that nothing an authority started outlives it.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
