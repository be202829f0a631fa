//go:build !race

package testenv

// RaceDetector is on in these tests.
const RaceDetector = false
