package embedded

import (
	"context"
	"path/filepath"
)

// ClickHouseLibrary returns the path of the ClickHouse library, fetching it first
// if it is not installed yet. log may be nil.
func ClickHouseLibrary(ctx context.Context, log LogFunc) (string, error) {
	dir, err := fetch(ctx, clickhouseEngine, log)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "libchdb.so"), nil
}
