package embedded_test

import (
	"testing"

	"diehard/shared/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
