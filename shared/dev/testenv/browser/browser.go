// Package browser tries pages in a real browser. It is apart from testenv so that
// other tests need not carry one.
package browser

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

// Page is open in a headless Chromium.
type Page struct {
	t   *testing.T
	ctx context.Context //nolint:containedctx // chromedp's handle of the page

	mu       sync.Mutex
	problems []string
}

// Open starts a browser that ends with the test. Without an installed
// Chromium or Chrome the test is skipped.
func Open(t *testing.T) *Page {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(chromium(t)), chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox) // tests may run as root, and the page is our own
	allocator, endAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(endAllocator)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		assert.NoError(t, chromedp.Cancel(ctx))
		cancel()
	})
	p := &Page{t: t, ctx: ctx}
	require.NoError(t, chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			p.note(e.ExceptionDetails.Text)
		case *log.EventEntryAdded:
			p.note(e.Entry.Text)
		}
	}))
	_, err := chromedp.Call(ctx, log.Enable, cdp.Empty{})
	require.NoError(t, err)
	return p
}

func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless-shell"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("no Chromium or Chrome is installed")
	return ""
}

func (p *Page) note(problem string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problems = append(p.problems, problem)
}

// Problems are the exceptions so far, and what the console said: refused assets, too.
func (p *Page) Problems() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.problems)
}

// Do runs an action in the page and returns its result.
func Do[T any](p *Page, action chromedp.Action[T]) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, await.Limit)
	defer cancel()
	result, err := chromedp.Run(ctx, action)
	require.NoError(p.t, err)
	return result
}

// Visit goes to an address.
func (p *Page) Visit(url string) {
	p.t.Helper()
	Do(p, chromedp.Navigate(url))
}

// Text is the visible text of an element.
func (p *Page) Text(selector string) string {
	p.t.Helper()
	return Do(p, chromedp.Text(chromedp.CSS(selector)))
}

// Await waits until a condition in JavaScript holds.
func (p *Page) Await(condition string) {
	p.t.Helper()
	await.True(p.t, func() bool { return Do(p, chromedp.Evaluate[bool](condition)) }, "%s", condition)
}

// RequireFits gives the page windows of several widths in both colour schemes,
// redraws it with the given JavaScript, fails if it is wider than its window, and
// keeps pictures NAME-WIDTH-SCHEME.png (see go test -artifacts).
func (p *Page) RequireFits(name, redraw string) {
	p.t.Helper()
	for _, width := range []int64{1280, 800, 390} {
		for _, scheme := range []string{"light", "dark"} {
			_, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			require.NoError(p.t, err)
			Do(p, chromedp.EmulateViewport(width, 900))
			wider := Do(p, chromedp.Evaluate[bool](redraw+"; document.documentElement.scrollWidth > innerWidth"))
			assert.False(p.t, wider, "the page is wider than %d", width)
			picture := filepath.Join(p.t.ArtifactDir(), fmt.Sprintf("%s-%d-%s.png", name, width, scheme))
			require.NoError(p.t, os.WriteFile(picture, Do(p, chromedp.FullScreenshot(100)), 0o600))
		}
	}
}
