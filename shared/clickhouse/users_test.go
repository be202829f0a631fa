package clickhouse_test

import (
	"encoding/xml"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

type containerUsers struct {
	Migrator []string `xml:"users>migrator>grants>query"`
	Streamer []string `xml:"users>streamer>grants>query"`
}

func readContainerUsers(t *testing.T, name string) (users containerUsers, text string) {
	t.Helper()
	content, err := os.ReadFile("../../docker/clickhouse/" + name)
	require.NoError(t, err)
	require.NoError(t, xml.Unmarshal(content, &users))
	return users, string(content)
}

// The embedded engine knows the language in which users are given their rights.
func TestUsersOfTheContainersAreGrantedWhatClickHouseKnows(t *testing.T) {
	t.Parallel()
	node, text := readContainerUsers(t, "users.xml")
	cluster, _ := readContainerUsers(t, "cluster-users.xml")
	require.NotEmpty(t, node.Migrator)
	require.NotEmpty(t, node.Streamer)
	env := testenv.New(t)
	for _, query := range slices.Concat(node.Migrator, node.Streamer, cluster.Migrator, cluster.Streamer) {
		var formatted string
		require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT formatQuery(?)", query+" TO user").Scan(&formatted), query)
		assert.True(t, strings.HasPrefix(formatted, "GRANT "), formatted)
	}
	// The streamer neither changes tables nor removes rows, anywhere, nor does it on a cluster.
	for _, query := range slices.Concat(node.Streamer, cluster.Streamer) {
		assert.Regexp(t, `^GRANT (SELECT, INSERT ON diehard\.\*|SELECT ON system\.[a-z_]+)$`, query)
	}
	// On one node nothing reaches another server, a file or a URL.
	for _, query := range node.Migrator {
		assert.NotRegexp(t, `REMOTE|CLUSTER|SOURCES|\*\.\*|TABLE ENGINE ON (\*|\w+)$`, strings.ReplaceAll(strings.ReplaceAll(query, "ON MergeTree", ""), "ON ReplacingMergeTree", ""), query)
	}
	// A cluster's grants are a node's and more: they replace them.
	assert.Subset(t, cluster.Migrator, node.Migrator)
	// The server's own user has no password.
	assert.Contains(t, text, `<default remove="remove"/>`)
	assert.Equal(t, 2, strings.Count(text, "<password from_env="), "a password for each user")
}
