package clickhouse_test

import (
	"cmp"
	"encoding/xml"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
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

// openTables are those of the database system that a server shows to every user
// (select_from_system_db_requires_grant, which the image sets).
var openTables = []string{"columns", "databases", "settings", "tables"}

var (
	fromSystem   = regexp.MustCompile(`(?:FROM|JOIN) system\.(\w+)`)
	fromReplicas = regexp.MustCompile(`system, (\w+)\) GROUP BY`) // of clusterAllReplicas
)

// A table of the server that a program asks is granted to its user: the embedded engine
// grants everything, a server in a container what is written there.
func TestUsersOfTheContainersMayReadWhatTheProgramsAsk(t *testing.T) {
	t.Parallel()
	node, _ := readContainerUsers(t, "users.xml")
	for folder, granted := range map[string][]string{"streamer": node.Streamer, "migrations": node.Migrator} {
		asked := 0
		require.NoError(t, filepath.WalkDir("../../"+folder, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() && entry.Name() == "sim" {
				return cmp.Or(err, fs.SkipDir)
			}
			if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			content, err := os.ReadFile(path)
			for _, table := range slices.Concat(fromSystem.FindAllSubmatch(content, -1), fromReplicas.FindAllSubmatch(content, -1)) {
				asked++
				name := string(table[1])
				assert.True(t, slices.Contains(openTables, name) || slices.Contains(granted, "GRANT SELECT ON system."+name), "%s asks system.%s", path, name)
			}
			return err
		}))
		assert.Positive(t, asked, folder)
	}
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
