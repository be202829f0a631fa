//go:build race

package testenv

// raceDetector is on in these tests.
const raceDetector = true
