package ops_test

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

	"diehard/shared/testenv"
)

// browser is a headless Chromium with one page open.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	problems []string // exceptions, and what the console says
}

// openBrowser starts a browser that ends with the test.
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
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			b.note(e.ExceptionDetails.Text)
		case *log.EventEntryAdded:
			b.note(e.Entry.Text)
		}
	}))
	_, err := chromedp.Call(ctx, log.Enable, cdp.Empty{})
	require.NoError(t, err)
	return b
}

func (b *browser) note(problem string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problems = append(b.problems, problem)
}

// do runs an action in the page and returns its result.
func do[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	result, err := chromedp.Run(ctx, action)
	require.NoError(b.t, err)
	return result
}

// text is the visible text of an element.
func (b *browser) text(selector string) string {
	b.t.Helper()
	return do(b, chromedp.Text(chromedp.CSS(selector)))
}

// size gives the page a window of the given width and a colour scheme, and
// keeps a picture of it (see go test -artifacts).
func (b *browser) size(width int64, scheme string) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	require.NoError(b.t, err)
	do(b, chromedp.EmulateViewport(width, 900))
	overflow := do(b, chromedp.Evaluate[bool]("drawAll(), document.documentElement.scrollWidth > innerWidth"))
	assert.False(b.t, overflow, "the page is wider than %d", width)
	picture := filepath.Join(b.t.ArtifactDir(), fmt.Sprintf("page-%d-%s.png", width, scheme))
	require.NoError(b.t, os.WriteFile(picture, do(b, chromedp.FullScreenshot(100)), 0o600))
}

func TestLivePage(t *testing.T) {
	t.Parallel()
	b := openBrowser(t)
	env := testenv.New(t)
	w := watch(t, env)
	eventually(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	do(b, chromedp.Navigate(w.url+"/"))
	eventually(t, func() bool { return b.text("#state") == "streaming" }, "the page never says streaming")

	const rows = 1234
	publish(t, env, rows)
	_, err := env.Pool.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", env.Slot+"_bm_mark")
	require.NoError(t, err)
	eventually(t, func() bool { return strings.Contains(b.text("#rate-bytes"), "1,234 since the start") }, "the events are never shown")
	eventually(t, func() bool { return strings.Contains(b.text("#slots"), "bookmark mark") }, "the bookmark is never shown")
	assert.Equal(t, "0", b.text("#dead"))
	assert.Regexp(t, `^[\d.]+ m?s$`, b.text("#lag"))
	assert.Contains(t, b.text("#slots"), env.Slot+" (ours)")
	assert.Contains(t, b.text("#postgres"), "7 days ahead")
	eventually(t, func() bool {
		return do(b, chromedp.Evaluate[int](`document.querySelectorAll("svg .line, svg .bars").length`)) == 7
	}, "not every line is drawn")
	for _, width := range []int64{1280, 800, 390} {
		b.size(width, "light")
		b.size(width, "dark")
	}

	assert.Empty(t, b.problems, "exceptions or refused assets")
	w.stop()
	eventually(t, func() bool { return b.text("#state") == "no answer" }, "the page does not notice that the streamer is gone")
}

func TestPageNeedsNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	_, body := watch(t, testenv.New(t)).get("/")
	assert.NotRegexp(t, `(src|href)=["']?(https?:)?//`, body)
	assert.NotContains(t, body, "@import")
}
