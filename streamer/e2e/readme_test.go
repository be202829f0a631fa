package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

// What the README shows is run as it stands there: the block behind the line
// <!-- tested: NAME -->.

func snippet(t *testing.T, name string) string {
	t.Helper()
	root, err := embedded.Root()
	require.NoError(t, err)
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(readme), "<!-- tested: "+name+" -->\n```")
	require.True(t, found, "README.md has no snippet %s", name)
	_, rest, _ = strings.Cut(rest, "\n")
	code, _, found := strings.Cut(rest, "\n```")
	require.True(t, found)
	return code + "\n"
}

// shop is an outbox of an application with an order 42, and a streamer.
func shop(t *testing.T) *testenv.Env {
	t.Helper()
	env := newEnv(t)
	execute(t, env, "CREATE TABLE orders (id bigint PRIMARY KEY, paid boolean NOT NULL DEFAULT false)")
	execute(t, env, "INSERT INTO orders VALUES (42)")
	start(t, env)
	return env
}

// paid demands that the order is paid and its event delivered, once.
func paid(t *testing.T, env *testenv.Env, events int) {
	t.Helper()
	awaitRows(t, env, events)
	assert.JSONEq(t, `{"order": 42}`, readRow(t, env, "order_paid").Context)
	var paid bool
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT paid FROM orders WHERE id = 42").Scan(&paid))
	assert.True(t, paid)
}

// missing skips the test on a machine that lacks something, and fails in CI.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		require.Fail(t, what+" is missing", ".ci/run installs it")
	}
	t.Skip(what + " is missing")
}

// feed runs a program with text on its standard input.
func feed(t *testing.T, env *testenv.Env, text, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env, cmd.Stdin = env.Environ(), strings.NewReader(text)
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\n%s", text, output)
}

func TestTheREADMEsPsqlPublishes(t *testing.T) {
	t.Parallel()
	psql, err := exec.LookPath("psql")
	if err != nil {
		missing(t, "psql")
	}
	env := shop(t)
	feed(t, env, snippet(t, "psql"), psql, "--no-psqlrc", "--set=ON_ERROR_STOP=1", env.PostgresURL)
	paid(t, env, 3)
	assert.Equal(t, []string{"1 order_paid", "2 order_packed", "3 order_shipped"}, types(t, env))
	assert.Equal(t, "Production", readRow(t, env, "order_shipped").Environment)
}

// python returns an interpreter that has the modules: Debian's may not be first in PATH.
func python(t *testing.T, modules string) string {
	t.Helper()
	for _, interpreter := range []string{"/usr/bin/python3", "python3"} {
		if exec.CommandContext(t.Context(), interpreter, "-c", "import "+modules).Run() == nil {
			return interpreter
		}
	}
	missing(t, "Python with "+modules)
	return ""
}

func TestTheREADMEsPsycopgPublishes(t *testing.T) {
	t.Parallel()
	interpreter := python(t, "psycopg")
	env := shop(t)
	code := snippet(t, "psycopg")
	failing := "try:\n    " + strings.ReplaceAll(code, "\n", "\n    ") + "    raise RuntimeError('rolls back')\nexcept RuntimeError: pass\n"
	feed(t, env, failing, interpreter, "-")
	assert.Empty(t, outboxIDs(t, env), "event and order went together")
	feed(t, env, code, interpreter, "-")
	paid(t, env, 1)
}

const djangoSetup = `
import json, os, urllib.parse
from django.conf import settings
url = urllib.parse.urlparse(os.environ["DATABASE_URL"])
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": url.path[1:], "USER": url.username,
    "PASSWORD": url.password or "", "HOST": url.hostname, "PORT": url.port}}, INSTALLED_APPS=[], USE_TZ=True)
import django
django.setup()
from django.db import connection, models, transaction
class Order(models.Model):
    id = models.BigIntegerField(primary_key=True)
    paid = models.BooleanField()
    class Meta:
        app_label, db_table = "shop", "orders"
`

func TestTheREADMEsDjangoPublishes(t *testing.T) {
	t.Parallel()
	interpreter := python(t, "django, psycopg2")
	env := shop(t)
	code := snippet(t, "django")
	failing := "try:\n  with transaction.atomic():\n    " + strings.ReplaceAll(code, "\n", "\n    ") + "raise RuntimeError\nexcept RuntimeError: pass\n"
	feed(t, env, djangoSetup+failing, interpreter, "-")
	assert.Empty(t, outboxIDs(t, env), "event and order went together")
	feed(t, env, djangoSetup+code, interpreter, "-")
	paid(t, env, 1)
}
