package clickhouse

import (
	"fmt"
	"regexp"
)

// identifier matches names that need no escaping in backquotes, in Keeper's paths
// and in file names.
var identifier = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]{0,126}$`)

// QuoteIdentifier returns name in backquotes for use in SQL. A name that has other
// characters than letters, digits, _ and -, or more than 127, is an error.
func QuoteIdentifier(name string) (string, error) {
	if !identifier.MatchString(name) {
		return "", fmt.Errorf("%q is not a name: use letters, digits, _ and -, at most 127", name)
	}
	return "`" + name + "`", nil
}

func checkIdentifier(variable, name string) error {
	if _, err := QuoteIdentifier(name); err != nil {
		return fmt.Errorf("%s: %w", variable, err)
	}
	return nil
}

func checkCluster(name string) error {
	if name == "" {
		return nil
	}
	return checkIdentifier("CLICKHOUSE_CLUSTER", name)
}
