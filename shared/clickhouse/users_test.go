package clickhouse_test

import (
	"encoding/xml"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/testenv"
)

// The embedded engine knows no users; it knows the language that they are given
// their rights in.
func TestUsersOfTheContainersAreGrantedWhatClickHouseKnows(t *testing.T) {
	t.Parallel()
	type grants struct {
		Query []string `xml:"grants>query"`
	}
	var file struct {
		Migrator grants `xml:"users>migrator"`
		Streamer grants `xml:"users>streamer"`
	}
	content, err := os.ReadFile("../../docker/clickhouse/users.xml")
	require.NoError(t, err)
	require.NoError(t, xml.Unmarshal(content, &file))
	require.NotEmpty(t, file.Migrator.Query)
	require.NotEmpty(t, file.Streamer.Query)
	env := testenv.New(t)
	for _, query := range append(file.Migrator.Query, file.Streamer.Query...) {
		var formatted string
		require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT formatQuery(?)", query+" TO somebody").Scan(&formatted), query)
		assert.True(t, strings.HasPrefix(formatted, "GRANT "), formatted)
	}
	// The streamer neither changes tables nor removes rows, anywhere.
	for _, query := range file.Streamer.Query {
		assert.Regexp(t, `^GRANT (SELECT, INSERT ON diehard\.\*|SELECT ON system\.[a-z_]+)$`, query)
	}
}
