package main

import (
	"testing"

	"diehard/shared/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
