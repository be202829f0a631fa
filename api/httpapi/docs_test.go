package httpapi_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"diehard/shared/testenv"
)

// browser is a headless Chromium with one page open.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	problems []string // exceptions, and what the console says: refused assets, too
}

func openBrowser(t *testing.T) *browser {
	t.Helper()
	program := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless-shell"} {
		if path, err := exec.LookPath(name); err == nil {
			program = path
			break
		}
	}
	if program == "" {
		t.Skip("no Chromium or Chrome is installed")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox) // tests may run as root, and the page is our own
	allocator, endAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(endAllocator)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		assert.NoError(t, chromedp.Cancel(ctx))
		cancel()
	})
	b := &browser{t: t, ctx: ctx}
	require.NoError(t, chromedp.Listen(ctx, func(event any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			b.problems = append(b.problems, e.ExceptionDetails.Text)
		case *log.EventEntryAdded:
			b.problems = append(b.problems, e.Entry.Text)
		}
	}))
	_, err := chromedp.Call(ctx, log.Enable, cdp.Empty{})
	require.NoError(t, err)
	return b
}

// run runs an action in the page and returns its result.
func run[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	result, err := chromedp.Run(ctx, action)
	require.NoError(b.t, err)
	return result
}

func (b *browser) await(condition string) {
	b.t.Helper()
	require.Eventually(b.t, func() bool { return run(b, chromedp.Evaluate[bool](condition)) }, 30*time.Second, 20*time.Millisecond, condition)
}

// size gives the page a window of the given width and a colour scheme, and
// keeps a picture of it (see go test -artifacts).
func (b *browser) size(width int64, scheme string) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	require.NoError(b.t, err)
	run(b, chromedp.EmulateViewport(width, 900))
	assert.False(b.t, run(b, chromedp.Evaluate[bool]("document.documentElement.scrollWidth > innerWidth")), "the page is wider than %d", width)
	picture := filepath.Join(b.t.ArtifactDir(), fmt.Sprintf("docs-%d-%s.png", width, scheme))
	require.NoError(b.t, os.WriteFile(picture, run(b, chromedp.FullScreenshot(100)), 0o600))
}

// press fills the form of an operation, sends it and waits for the answer.
func (b *browser) press(operation, key, status string) {
	b.t.Helper()
	run(b, chromedp.Evaluate[bool](fmt.Sprintf(`document.getElementById("key").value = %q;
		document.getElementById("key").dispatchEvent(new Event("input"));
		document.querySelector("#%s [aria-live]").replaceChildren();
		document.querySelector("#%[2]s form").requestSubmit(), true`, key, operation)))
	b.await(fmt.Sprintf(`document.querySelector("#%s [aria-live]").textContent.startsWith(%q)`, operation, status))
}

func TestThePageShowsAndTriesEverything(t *testing.T) {
	t.Parallel()
	b := openBrowser(t)
	env := testenv.New(t)
	secrets, protect := withKeys(t, "reader")
	a := start(t, env.PostgresURL, protect)
	run(b, chromedp.Navigate(a.URL+"/docs"))
	document, err := description()
	require.NoError(t, err)
	for _, item := range document.Paths.PathItems.FromOldest() {
		for _, operation := range item.GetOperations().FromOldest() {
			b.await(fmt.Sprintf(`document.getElementById(%q) !== null`, operation.OperationId))
		}
	}
	b.press("publishEvents", secrets[0], "202")
	ids, contexts := outbox(t, env.Pool)
	require.Len(t, ids, 1)
	assert.Equal(t, []string{"{\n    \"order\": 42,\n    \"amount\": \"9.90\"\n  }"}, contexts, "as it stands on the page")
	b.await(fmt.Sprintf(`document.querySelector("#publishEvents [aria-live]").textContent.includes(%q)`, ids[0]))
	b.press("createUser", secrets[0], "201")
	terminal := run(b, chromedp.Evaluate[string](`document.querySelector("#createUser .curl").textContent`))
	assert.Contains(t, terminal, `-H "Authorization: Bearer $KEY"`)
	assert.NotContains(t, terminal, secrets[0])
	for _, width := range []int64{1280, 800, 390} {
		b.size(width, "light")
		b.size(width, "dark")
	}
	assert.Empty(t, b.problems, "exceptions or refused assets")
	b.press("createUser", "wrong", "401") // the console notes it
}

func TestThePageNeedsNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	a := start(t, away, nil)
	for path, kind := range map[string]string{
		"/docs": "text/html; charset=utf-8", "/docs/page.css": "text/css; charset=utf-8",
		"/docs/page.js": "text/javascript; charset=utf-8", "/docs/icon.svg": "image/svg+xml",
	} {
		got := a.do(t, http.MethodGet, path, "")
		assert.Equal(t, http.StatusOK, got.status)
		assert.Equal(t, kind, got.header.Get("Content-Type"))
		assert.NotRegexp(t, `(src|href)=["']?(https?:)?//|@import|url\(`, got.body)
		assert.NotContains(t, got.body, "innerHTML", "texts stay texts")
	}
}

func TestTheDescriptionIsServedInBothForms(t *testing.T) {
	t.Parallel()
	a := start(t, away, nil)
	file, err := os.ReadFile("docs/openapi.yaml")
	require.NoError(t, err)
	got := a.do(t, http.MethodGet, "/openapi.yaml", "")
	assert.Equal(t, string(file), got.body)

	asJSON := a.do(t, http.MethodGet, "/openapi.json", "").body
	var want, have any
	require.NoError(t, yaml.Unmarshal(file, &want))
	require.NoError(t, yaml.Unmarshal([]byte(asJSON), &have)) // JSON is YAML
	assert.Equal(t, want, have)
	assert.Less(t, strings.Index(asJSON, `"paths":{`), strings.Index(asJSON, `"components":{`), "in the order of the file")
}
