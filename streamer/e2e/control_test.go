package e2e

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// controlState returns how the server on dataDir ended, in pg_controldata's words.
// Source: PostgreSQL, src/include/catalog/pg_control.h, DBState.
func controlState(t testing.TB, dataDir string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dataDir, "global", "pg_control"))
	require.NoError(t, err)
	// system_identifier uint64, pg_control_version uint32, catalog_version_no uint32, state int32
	states := []string{"starting up", "shut down", "shut down in recovery", "shutting down", "in crash recovery", "in archive recovery", "in production"}
	state := int(binary.LittleEndian.Uint32(raw[16:]))
	require.Less(t, state, len(states))
	return states[state]
}
