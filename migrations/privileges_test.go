package migrations_test

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

var update = flag.Bool("update", false, "rewrite the table of privileges in streamer/README.md")

// granted lists what our roles and PUBLIC have on what the migrations make, owners excepted.
// Functions are by name; what PUBLIC may call without a grant is EXECUTE by PostgreSQL's default.
const granted = `
	WITH acl AS (
		SELECT c.relname::text AS name, 1 AS kind, a.grantee, a.privilege_type || coalesce(' (' || string_agg(x.attname, ', ' ORDER BY x.attnum) || ')', '') AS rights
		FROM pg_class AS c
		LEFT JOIN pg_attribute AS x ON x.attrelid = c.oid AND x.attacl IS NOT NULL,
			LATERAL aclexplode(coalesce(x.attacl, acldefault('c', c.relowner))) AS a
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND a.grantee <> c.relowner
		GROUP BY c.relname, a.grantee, a.privilege_type
		UNION ALL
		SELECT c.relname, 1, a.grantee, a.privilege_type FROM pg_class AS c, LATERAL aclexplode(c.relacl) AS a
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND a.grantee <> c.relowner
		UNION ALL
		SELECT DISTINCT p.proname, 2, a.grantee, a.privilege_type FROM pg_proc AS p, LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
		WHERE p.pronamespace = 'public'::regnamespace AND a.grantee <> p.proowner
	), lines AS (
		SELECT grantee, kind, string_agg(rights, ', ' ORDER BY rights) AS rights, name FROM acl GROUP BY grantee, kind, name
	)
	SELECT string_agg(format('| %s | %s | %s |', CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE '` + "`" + `' || pg_get_userbyid(grantee) || '` + "`" + `' END, rights, names), E'\n'
		ORDER BY CASE WHEN grantee = 0 THEN '' ELSE pg_get_userbyid(grantee)::text END, kind, rights)
	FROM (SELECT grantee, kind, rights, string_agg('` + "`" + `' || name || '` + "`" + `', ', ' ORDER BY name) AS names FROM lines GROUP BY grantee, kind, rights) AS l`

// The README says what each role may do, and it is what the catalog says.
func TestThePrivilegesOfTheREADMEAreTheCatalogs(t *testing.T) {
	t.Parallel()
	var table string
	require.NoError(t, connect(t, testenv.New(t).PostgresURL).QueryRow(t.Context(), granted).Scan(&table))
	want := "| role | may | on |\n|---|---|---|\n" + strings.ReplaceAll(table, "EXECUTE", "call") + "\n"
	const file = "../streamer/README.md"
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	block := regexp.MustCompile(`(?s)(<!-- privileges: [^\n]*-->\n).*?(<!-- end of privileges -->)`)
	require.Regexp(t, block, string(content))
	if *update {
		written := block.ReplaceAllString(string(content), "${1}"+want+"${2}")
		require.NoError(t, os.WriteFile(file, []byte(written), 0o644))
		return
	}
	assert.Contains(t, string(content), want, "go test ./migrations -run Privileges -update")
	for _, role := range []string{"diehard_producer", "diehard_api", "diehard_streamer"} {
		assert.Contains(t, want, role)
	}
}
