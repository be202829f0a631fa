package embedded

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// registry is an npm registry on the loopback interface with one small package,
// laid out like the one of PostgreSQL. npm is the real one.
type registry struct {
	url       string
	pin       pin
	downloads atomic.Int32
	// stall, if set, is called before the archive is served.
	stall atomic.Pointer[func(*http.Request)]
}

func startRegistry(t *testing.T) *registry {
	t.Helper()
	archive := pack(t, map[string]string{
		"package.json":               `{"name": "tiny", "version": "1.2.3"}`,
		"native/bin/server":          "#!/bin/sh\necho tiny\n",
		"native/lib/libtiny.so.1.18": "library",
		"native/pg-symlinks.json":    `[{"source": "native/lib/libtiny.so.1.18", "target": "native/lib/libtiny.so.1"}]`,
	})
	sum := sha512.Sum512(archive)
	integrity := "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
	r := &registry{pin: pin{engine: "tiny-1", name: "tiny", version: "1.2.3", integrity: integrity}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if strings.HasSuffix(request.URL.Path, ".tgz") {
			r.downloads.Add(1)
			if stall := r.stall.Load(); stall != nil {
				(*stall)(request)
			}
			_, _ = w.Write(archive)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"name": "tiny", "dist-tags": map[string]string{"latest": "1.2.3"},
			"versions": map[string]any{"1.2.3": map[string]any{
				"name": "tiny", "version": "1.2.3",
				"dist": map[string]string{"tarball": r.url + "/tiny.tgz", "integrity": integrity},
			}},
		})
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	t.Setenv("npm_config_registry", r.url)
	t.Setenv("npm_config_cache", t.TempDir())
	return r
}

// pack makes an archive as npm does: everything in a folder named package.
func pack(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var archive bytes.Buffer
	compressed := gzip.NewWriter(&archive)
	writer := tar.NewWriter(compressed)
	for name, content := range files {
		mode := int64(0o600)
		if strings.Contains(name, "/bin/") {
			mode = 0o700
		}
		require.NoError(t, writer.WriteHeader(&tar.Header{Name: "package/" + name, Mode: mode, Size: int64(len(content))}))
		_, err := writer.Write([]byte(content))
		require.NoError(t, err)
	}
	require.NoError(t, writer.Close())
	require.NoError(t, compressed.Close())
	return archive.Bytes()
}
