package clients_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/dev/embedded"
)

// python runs code by an interpreter that has the modules: Debian's may not be first in PATH.
func python(modules string) client {
	return func(t *testing.T, code string, environ []string) string {
		t.Helper()
		for _, interpreter := range []string{"/usr/bin/python3", "python3"} {
			if exec.CommandContext(t.Context(), interpreter, "-c", "import "+modules).Run() == nil {
				return file("page.py", interpreter)(t, code, environ)
			}
		}
		missing(t, "Python with "+modules)
		return ""
	}
}

// djangoProject is what a project has in its settings, and a model of its own.
const djangoProject = `
import os
from django.conf import settings
settings.configure(INSTALLED_APPS=[], USE_TZ=True, DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"], "USER": os.environ["PGUSER"],
    "PASSWORD": os.environ["PGPASSWORD"], "HOST": os.environ["PGHOST"], "PORT": os.environ["PGPORT"]}})
import django
django.setup()
from django.db import models
class Order(models.Model):
    id = models.BigIntegerField(primary_key=True)
    paid = models.BooleanField()
    class Meta:
        app_label, db_table = "shop", "orders"
`

func django(t *testing.T, code string, environ []string) string {
	t.Helper()
	return python("django, psycopg2")(t, djangoProject+code, environ)
}

// nodeModules is the folder with the packages of node/package-lock.json, in .dev. They are
// installed on first use.
var nodeModules = sync.OnceValues(func() (dir string, err error) {
	root, err := embedded.Root()
	if err != nil {
		return "", err
	}
	lock, err := os.ReadFile(filepath.Join("node", "package-lock.json"))
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(lock)
	dir = filepath.Join(root, ".dev", "clients", "node-"+hex.EncodeToString(sum[:4]))
	if _, err := os.Stat(filepath.Join(dir, "complete")); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	for _, name := range []string{"package.json", "package-lock.json"} {
		content, err := os.ReadFile(filepath.Join("node", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), content, 0o600)
		}
		if err != nil {
			return "", err
		}
	}
	install := exec.CommandContext(context.Background(), "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error")
	install.Dir = dir
	if printed, err := install.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm ci: %w: %s", err, printed)
	}
	return dir, os.WriteFile(filepath.Join(dir, "complete"), nil, 0o600)
})

// nodeProject makes a folder in which the packages are found, and a function that runs a
// command of theirs, or node, there.
func nodeProject(t *testing.T, environ []string) (dir string, run func(name string, args ...string) string) {
	t.Helper()
	if _, err := exec.LookPath("npm"); err != nil {
		missing(t, "npm")
	}
	modules, err := nodeModules()
	if err != nil {
		missing(t, "a package of npm ("+err.Error()+")")
	}
	dir, err = os.MkdirTemp(modules, "run-") //nolint:usetesting // beside node_modules, where node looks
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir, func(name string, args ...string) string {
		t.Helper()
		if name != "node" {
			name = filepath.Join(modules, "node_modules", ".bin", name)
		}
		return output(t, dir, environ, name, args...)
	}
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
}

// node runs a module of JavaScript.
func node(t *testing.T, code string, environ []string) string {
	t.Helper()
	dir, run := nodeProject(t, environ)
	write(t, dir, "page.mjs", code)
	return run("node", "page.mjs")
}

const tsconfig = `{"include": ["*.ts", "generated"], "compilerOptions": {"target": "es2022", "module": "nodenext", "strict": true,
	"experimentalDecorators": true, "emitDecoratorMetadata": true, "skipLibCheck": true, "types": ["node"], "noEmitOnError": true}}`

// typescript compiles and runs code. Before it compiles, prepare adds what code imports.
func typescript(prepare func(t *testing.T, dir string, run func(string, ...string) string)) client {
	return func(t *testing.T, code string, environ []string) string {
		t.Helper()
		// No engine of another language is downloaded: the client does without.
		dir, run := nodeProject(t, append(environ, "PRISMA_SCHEMA_ENGINE_BINARY=/bin/false", "PRISMA_HIDE_UPDATE_MESSAGE=1"))
		write(t, dir, "package.json", `{"type": "module"}`)
		write(t, dir, "tsconfig.json", tsconfig)
		write(t, dir, "page.ts", code)
		prepare(t, dir, run)
		run("tsc", "--project", ".")
		return run("node", "page.js")
	}
}

func nothing(*testing.T, string, func(string, ...string) string) {}

func prismaClient(t *testing.T, dir string, run func(string, ...string) string) {
	t.Helper()
	write(t, dir, "schema.prisma", program(t, "node.md", "prisma-schema"))
	run("prisma", "generate", "--schema", "schema.prisma")
}

// apiTypes makes types of the api's description, and checks that they refuse what the api refuses.
func apiTypes(t *testing.T, dir string, run func(string, ...string) string) {
	t.Helper()
	description, err := filepath.Abs("../../../api/httpapi/docs/openapi.yaml")
	require.NoError(t, err)
	run("openapi-typescript", description, "--output", "api.d.ts")
	write(t, dir, "refused.ts", strings.ReplaceAll(`import type { components } from "./api.js";
		type NewEvent = components["schemas"]["NewEvent"];
		export const events: NewEvent[] = [
			{ event_type: "t", event_context: [1], event_key: "k", event_date_time: "2026-01-02T03:04:05Z", environment: null, metadata_version: 2 },
			// @ts-expect-error a misspelt field
			{ event_type: "t", event_context: 1, environmint: "x" },
			// @ts-expect-error no type
			{ event_context: 1 },
			// @ts-expect-error a number is no key
			{ event_type: "t", event_context: 1, event_key: 42 },
		];
		`, "\t\t", "\t"))
}

// ruby runs code by Debian's interpreter, which has Debian's gems.
func ruby(gems ...string) client {
	return func(t *testing.T, code string, environ []string) string {
		t.Helper()
		for _, gem := range gems {
			if exec.CommandContext(t.Context(), "ruby", "-e", "require '"+gem+"'").Run() != nil {
				missing(t, "Ruby with "+gem)
			}
		}
		return file("page.rb", "ruby")(t, code, environ)
	}
}

// jars are Debian's.
const jars = "/usr/share/java/"

// java compiles and runs the class Page with libraries of Debian and files beside it.
func java(library string, files map[string]string) client {
	return func(t *testing.T, code string, environ []string) string {
		t.Helper()
		for _, name := range []string{"postgresql.jar", library} {
			if _, err := os.Stat(jars + name); err != nil {
				missing(t, jars+name)
			}
		}
		if _, err := exec.LookPath("javac"); err != nil {
			missing(t, "javac")
		}
		dir := t.TempDir()
		require.NoError(t, os.Mkdir(filepath.Join(dir, "META-INF"), 0o700))
		for name, content := range files {
			write(t, dir, name, content)
		}
		write(t, dir, "Page.java", code)
		output(t, dir, environ, "javac", "-proc:none", "-cp", jars+"*", "Page.java")
		return output(t, dir, append(environ, "JDBC_URL=jdbc:postgresql://"+valueOf(environ, "PGHOST")+":"+valueOf(environ, "PGPORT")+"/"+valueOf(environ, "PGDATABASE")+
			"?user="+valueOf(environ, "PGUSER")+"&password="+valueOf(environ, "PGPASSWORD")+"&sslmode=disable"), "java", "-cp", jars+"*:.", "Page")
	}
}

// valueOf is a variable of environ.
func valueOf(environ []string, name string) string {
	for _, variable := range environ {
		if value, found := strings.CutPrefix(variable, name+"="); found {
			return value
		}
	}
	return ""
}

var persistence = map[string]string{"META-INF/persistence.xml": `<persistence xmlns="http://xmlns.jcp.org/xml/ns/persistence" version="2.1">
	<persistence-unit name="shop" transaction-type="RESOURCE_LOCAL">
		<provider>org.eclipse.persistence.jpa.PersistenceProvider</provider><class>Event</class><class>Order</class>
		<properties><property name="eclipselink.logging.level" value="OFF"/></properties>
	</persistence-unit></persistence>`}

// php runs code behind that of a file which is what a project loads first.
func php(extension, library, first string) client {
	return func(t *testing.T, code string, environ []string) string {
		t.Helper()
		if exec.CommandContext(t.Context(), "php", "-r", "exit((int) !extension_loaded('"+extension+"'));").Run() != nil {
			missing(t, "PHP with "+extension)
		}
		if _, err := os.Stat("/usr/share/php/" + library); err != nil {
			missing(t, "/usr/share/php/"+library)
		}
		environ = append(environ, "PDO_DSN=pgsql:host="+valueOf(environ, "PGHOST")+";port="+valueOf(environ, "PGPORT")+";dbname="+valueOf(environ, "PGDATABASE"))
		dir := t.TempDir()
		write(t, dir, "first.php", "<?php "+first)
		// Debian's Laravel is older than its PHP, which deprecates some of it.
		return file("page.php", "php", "-d", "error_reporting=E_ALL & ~E_DEPRECATED", "-d", "auto_prepend_file="+filepath.Join(dir, "first.php"))(t, code, environ)
	}
}

const laravel = `require_once 'Illuminate/autoload.php';
$capsule = new Illuminate\Database\Capsule\Manager;
$capsule->addConnection(['driver' => 'pgsql', 'host' => getenv('PGHOST'), 'port' => getenv('PGPORT'),
	'database' => getenv('PGDATABASE'), 'username' => getenv('PGUSER'), 'password' => getenv('PGPASSWORD')]);
$capsule->setEventDispatcher(new Illuminate\Events\Dispatcher(new Illuminate\Container\Container));
$capsule->setAsGlobal();
$capsule->bootEloquent();
class_alias(Illuminate\Database\Capsule\Manager::class, 'DB');`

// golang runs a program of the module in the folder go, which is not the product's.
func golang(t *testing.T, code string, environ []string) string {
	t.Helper()
	return output(t, goModule(t, code), environ, "go", "run", "-mod=mod", ".")
}

// goModule makes a folder of that module with a program.
func goModule(t *testing.T, code string) (dir string) {
	t.Helper()
	root, err := embedded.Root()
	require.NoError(t, err)
	dir = t.TempDir()
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join("go", name))
		require.NoError(t, err)
		write(t, dir, name, strings.ReplaceAll(string(content), "../../../..", root))
	}
	write(t, dir, "main.go", code)
	return dir
}

const sqlcVersion = "github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1"

// sqlc generates a package from the outbox's script and the page's queries, and runs code with it.
func sqlc(t *testing.T, code string, environ []string) string {
	t.Helper()
	dir := goModule(t, code)
	var script strings.Builder
	require.NoError(t, migrations.Outbox("public", "outbox_pub").WriteAll(&script))
	write(t, dir, "outbox.sql", script.String())
	write(t, dir, "schema.sql", "CREATE TABLE orders (id bigint PRIMARY KEY, paid boolean NOT NULL DEFAULT false);")
	write(t, dir, "queries.sql", program(t, "go.md", "sqlc-queries"))
	write(t, dir, "sqlc.yaml", program(t, "go.md", "sqlc-config"))
	// Without cgo its parser of SQL is WebAssembly, which builds in seconds.
	output(t, dir, append(environ, "CGO_ENABLED=0"), "go", "run", sqlcVersion, "generate")
	return output(t, dir, environ, "go", "run", "-mod=mod", ".")
}
