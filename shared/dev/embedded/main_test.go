package embedded_test

import (
	"testing"

	"diehard/shared/dev/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
