//go:build !race

package srv

const raceEnabled = false
