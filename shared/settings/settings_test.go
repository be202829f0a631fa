package settings_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/settings"
)

type storage struct {
	URL  string `env:"STORE_URL,required" secret:"true" example:"store://host" doc:"address of the store"`
	Port uint16 `env:"STORE_PORT" envDefault:"9000" min:"1" doc:"port of the store"`
}

type sample struct {
	untagged
	Store  storage
	Rows   int            `env:"ROWS" envDefault:"1000" min:"1" max:"5000" doc:"rows of a batch"`
	Size   settings.Bytes `env:"SIZE" envDefault:"8MiB" min:"1KiB" doc:"bytes of a batch"`
	Wait   time.Duration  `env:"WAIT" envDefault:"1s" min:"1ms" doc:"longest wait"`
	Format string         `env:"FORMAT" envDefault:"console" oneof:"console json" doc:"log format"`
	Keys   []string       `env:"KEYS" secret:"true" doc:"keys, separated by commas"`
	Debug  bool           `env:"DEBUG" doc:"more words"`
	Key    storageKey     `env:"SECRET_NUMBER" secret:"true" doc:"a secret number"`
}

type untagged struct {
	Unread string // no tag: not from the environment
}

type storageKey int

func TestParseDefaults(t *testing.T) {
	got, err := settings.ParseFrom[sample]("api", map[string]string{"STORE_URL": "store://h", "ROWS": ""})
	require.NoError(t, err)
	assert.Equal(t, sample{
		Store: storage{URL: "store://h", Port: 9000},
		Rows:  1000, Size: 8 * settings.MiB, Wait: time.Second, Format: "console",
	}, got)
}

func TestParseReadsTheProcessEnvironment(t *testing.T) {
	t.Setenv("STORE_URL", "store://h")
	t.Setenv("KEYS", "a,b")
	t.Setenv("SIZE", "64KB")
	got, err := settings.Parse[sample]("api")
	require.NoError(t, err)
	assert.Equal(t, []string{"a", "b"}, got.Keys)
	assert.Equal(t, settings.Bytes(64000), got.Size)
}

func TestParseNamesEveryBadVariableOnce(t *testing.T) {
	_, err := settings.ParseFrom[sample]("streamer", map[string]string{
		"STORE_PORT": "99999", "ROWS": "9999", "SIZE": "12 parsecs", "WAIT": "10",
		"FORMAT": "xml", "DEBUG": "maybe", "SECRET_NUMBER": "hunter2",
	})
	require.Error(t, err)
	assert.Equal(t, `streamer: 8 settings are wrong:
  STORE_URL is not set; expected: address of the store
  STORE_PORT = "99999" is not a whole number in range, 0 or more; expected: port of the store
  ROWS = "9999" is more than 5000; expected: rows of a batch
  SIZE = "12 parsecs" is not a size such as 64KiB, 8MiB or 1048576; expected: bytes of a batch
  WAIT = "10" is not a duration such as 500ms, 10s or 5m; expected: longest wait
  FORMAT = "xml" is not one of console, json; expected: log format (one of console, json)
  DEBUG = "maybe" is not true or false; expected: more words
  SECRET_NUMBER (secret, not shown) is not a whole number in range; expected: a secret number`, err.Error())
	assert.NotContains(t, err.Error(), "hunter2")
}

type ranged struct {
	Low  int `env:"LOW" envDefault:"1" doc:"low end"`
	High int `env:"HIGH" envDefault:"2" doc:"high end"`
}

func (r ranged) Validate() error {
	if r.Low > r.High {
		return errors.New("LOW is above HIGH")
	}
	return nil
}

func TestParseAsksValidate(t *testing.T) {
	type whole struct{ Range ranged }
	_, err := settings.ParseFrom[whole]("api", map[string]string{"LOW": "3"})
	require.EqualError(t, err, "api: 1 setting is wrong:\n  LOW is above HIGH")

	_, err = settings.ParseFrom[whole]("api", map[string]string{"LOW": "x", "HIGH": "0"})
	require.EqualError(t, err, "api: 1 setting is wrong:\n  LOW = \"x\" is not a whole number in range; expected: low end",
		"the default of a wrong variable is not reported")

	_, err = settings.ParseFrom[whole]("api", nil)
	require.NoError(t, err)
}

type several struct {
	Range ranged
	Other int    `env:"OTHER" envDefault:"1" max:"9" doc:"another number"`
	Name  string `env:"NAME" envDefault:"a" doc:"a name"`
}

func (s several) Validate() error {
	var errs []error
	if strings.Contains(s.Name, " ") {
		errs = append(errs, errors.New("NAME has a space"))
	}
	if s.Other != 1 && s.Name == "a" {
		errs = append(errs, errors.New("OTHER needs a NAME"))
	}
	return errors.Join(errs...)
}

// A variable that cannot be read hides none of the others, whichever way they are wrong.
func TestParseNamesWhatValidateFindsAtTheSameTime(t *testing.T) {
	_, err := settings.ParseFrom[several]("api", map[string]string{"LOW": "3", "OTHER": "many", "NAME": "a b"})
	require.EqualError(t, err, `api: 3 settings are wrong:
  LOW is above HIGH
  OTHER = "many" is not a whole number in range; expected: another number
  NAME has a space`)
}

func TestAddresses(t *testing.T) {
	type program struct {
		Addr string `env:"ADDR" envDefault:"127.0.0.1:1" form:"address" doc:"where it listens"`
	}
	for _, good := range []string{":8080", "127.0.0.1:0", "[::1]:8080", "localhost:65535"} {
		got, err := settings.ParseFrom[program]("api", map[string]string{"ADDR": good})
		require.NoError(t, err, good)
		assert.Equal(t, good, got.Addr)
	}
	for _, wrong := range []string{"8080", "localhost", "http://127.0.0.1:8080", "127.0.0.1:65536", "127.0.0.1:8080/", "::1:8080", "h:", "h:-1"} {
		_, err := settings.ParseFrom[program]("api", map[string]string{"ADDR": wrong})
		require.ErrorContains(t, err, "ADDR = \""+wrong+"\" is not HOST:PORT, such as 127.0.0.1:8080, or :8080 for every address", wrong)
	}
}

func TestBadTagsAreNamed(t *testing.T) {
	type wrong struct {
		Rows int            `env:"ROWS" envDefault:"1" min:"few"`
		Name string         `env:"NAME" envDefault:"a" max:"z"`
		Hook func()         `env:"HOOK" envDefault:"x"`
		Size settings.Bytes `env:"SIZE,sometimes"`
		Kind string         `env:"KIND" envDefault:"x" form:"oval"`
	}
	_, err := settings.ParseFrom[wrong]("api", nil)
	require.ErrorContains(t, err, `ROWS cannot be checked: bound "few"`)
	require.ErrorContains(t, err, `NAME cannot be checked: bound "z": string has no order`)
	require.ErrorContains(t, err, `HOOK cannot be read`)
	require.ErrorContains(t, err, `SIZE cannot be read`)
	require.ErrorContains(t, err, `KIND cannot be checked: unknown form "oval"`)
}

func TestVarsAndTheirDocumentation(t *testing.T) {
	vars := settings.Vars[sample]()
	require.Len(t, vars, 9)
	assert.Equal(t, settings.Var{
		Name: "STORE_URL", Doc: "address of the store", Example: "store://host", Required: true, Secret: true,
	}, vars[0])

	table := settings.Table[storage]()
	assert.Equal(t, "| Variable | Default | Meaning |\n|---|---|---|\n"+
		"| `STORE_URL` | required | Address of the store |\n"+
		"| `STORE_PORT` | `9000` | Port of the store |\n", table)

	file := settings.EnvFile(
		settings.Section{Title: "Store", Vars: settings.Vars[storage]()},
		settings.Section{Title: "All", Vars: vars[:3]},
	)
	assert.Contains(t, file, "# ---- Store ----\n\n# Address of the store (required)\n#STORE_URL=store://host\n")
	assert.Contains(t, file, "# ---- All ----\n\n# Rows of a batch\n#ROWS=1000\n", "shared variables are listed once")
}

func TestBytes(t *testing.T) {
	for text, want := range map[string]settings.Bytes{
		"0": 0, "1048576": settings.MiB, "8MiB": 8 * settings.MiB, "8 mib": 8 * settings.MiB,
		"64KB": 64000, "1.5GiB": 3 * settings.GiB / 2, "2TB": 2e12, "7B": 7,
	} {
		var got settings.Bytes
		require.NoError(t, got.UnmarshalText([]byte(text)), text)
		assert.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "MiB", "-1", "1.5", "1..5MB", "12XB", "NaN", "9999999TiB", "1e3"} {
		var got settings.Bytes
		require.Error(t, got.UnmarshalText([]byte(text)), text)
	}
	for want, size := range map[string]settings.Bytes{
		"0B": 0, "1000B": 1000, "1KiB": 1024, "8MiB": 8 << 20, "1.5GiB": 3 << 29, "2TiB": 2 << 40,
	} {
		assert.Equal(t, want, size.String())
	}
}
