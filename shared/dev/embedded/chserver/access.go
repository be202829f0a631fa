package chserver

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
)

// grants let every user do everything inside the engine. What is left out are the
// sources and sinks outside of it: files, URLs, programs, other servers,
// dictionaries (which have such sources) and backups.
const grants = `GRANT SHOW, SELECT, INSERT, ALTER, DROP, TRUNCATE, OPTIMIZE, KILL QUERY, SYSTEM, dictGet, INTROSPECTION,
	CREATE DATABASE, CREATE TABLE, CREATE VIEW, CREATE TEMPORARY TABLE, CREATE FUNCTION ON *.*`

const configXML = `<clickhouse>
  <users_config>%s</users_config>
  %s
</clickhouse>
`

const usersXML = `<clickhouse>
  <profiles><default>%s</default></profiles>
  <quotas><default/></quotas>
  <users>
    <default>
      <password></password><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>
      %s
      <grants>%s</grants>
    </default>
  </users>
</clickhouse>
`

// writeConfig writes the engine's configuration into its data folder. Its users have no
// password: clients authenticate here, and the engine has no port of its own.
func writeConfig(o Options) error {
	users := filepath.Join(o.DataDir, "users.xml")
	query := "<query>" + grants + "</query>"
	if o.Grants != "" {
		query += "<query>GRANT " + o.Grants + " ON *.*</query>"
	}
	if err := os.WriteFile(users, fmt.Appendf(nil, usersXML, o.Profile, o.User, query), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.DataDir, "config.xml"), fmt.Appendf(nil, configXML, users, o.Server), 0o600)
}

// outside are the functions and table engines that the engine's access control
// does not cover.
var outside = map[string]bool{
	"file": true, "executable": true, "executablepool": true, "eval": true, "python": true,
	"embeddedrocksdb": true, "filelog": true, "keepermap": true,
}

// checkAccess refuses what grants cannot: reading and writing files of the client
// (of this process, in a library), functions without a privilege of their own, and
// commands that would end the server.
func checkAccess(sql string) error {
	l := &lexer{sql: sql}
	first := l.peek()
	var last, beforeLast token
	for t := l.next(); t.kind != tokenEnd; beforeLast, last, t = last, t, l.next() {
		if t.kind != tokenWord && t.kind != tokenQuoted {
			continue
		}
		name := strings.ToLower(t.identifier())
		called := l.peek().punct("(") || last.is("APPLY") || last.punct("(") && beforeLast.is("APPLY")
		engine := last.is("ENGINE") || last.punct("=") && beforeLast.is("ENGINE")
		switch {
		case t.is("INFILE"), t.is("OUTFILE"):
			return accessDenied(strings.ToUpper(name))
		case outside[name] && (called || engine):
			return accessDenied(name)
		case first.is("SYSTEM") && (t.is("SHUTDOWN") || t.is("KILL") || t.is("SUSPEND")):
			return accessDenied("SYSTEM " + strings.ToUpper(name))
		}
	}
	return nil
}

func accessDenied(what string) error {
	return newException(proto.ErrAccessDenied, "ACCESS_DENIED",
		"DB::Exception: Not enough privileges: "+what+" is not allowed in the embedded ClickHouse")
}
