package httpapi_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"diehard/shared/dev/testenv"
	"diehard/shared/dev/testenv/browser"
)

// press fills the form of an operation, sends it and waits for the answer.
func press(b *browser.Page, operation, key, status string) {
	browser.Do(b, chromedp.Evaluate[bool](fmt.Sprintf(`document.getElementById("key").value = %q;
		document.getElementById("key").dispatchEvent(new Event("input"));
		document.querySelector("#%s [aria-live]").replaceChildren();
		document.querySelector("#%[2]s form").requestSubmit(), true`, key, operation)))
	b.Await(fmt.Sprintf(`document.querySelector("#%s [aria-live]").textContent.startsWith(%q)`, operation, status))
}

func TestThePageShowsAndTriesEverything(t *testing.T) {
	t.Parallel()
	b := browser.Open(t)
	env := testenv.New(t)
	secrets, protect := withKeys(t, "reader")
	a := start(t, env.PostgresURL, protect)
	b.Visit(a.URL + "/docs")
	document, err := description()
	require.NoError(t, err)
	for _, item := range document.Paths.PathItems.FromOldest() {
		for _, operation := range item.GetOperations().FromOldest() {
			b.Await(fmt.Sprintf(`document.getElementById(%q) !== null`, operation.OperationId))
		}
	}
	press(b, "publishEvents", secrets[0], "202")
	ids, contexts := outbox(t, env.Pool)
	require.Len(t, ids, 1)
	assert.Equal(t, []string{"{\n    \"order\": 42,\n    \"amount\": \"9.90\"\n  }"}, contexts, "as it stands on the page")
	b.Await(fmt.Sprintf(`document.querySelector("#publishEvents [aria-live]").textContent.includes(%q)`, ids[0]))
	press(b, "createUser", secrets[0], "201")
	terminal := browser.Do(b, chromedp.Evaluate[string](`document.querySelector("#createUser .curl").textContent`))
	assert.Contains(t, terminal, `-H "Authorization: Bearer $KEY"`)
	assert.NotContains(t, terminal, secrets[0])
	b.RequireFits("docs", "")
	assert.Empty(t, b.Problems(), "exceptions or refused assets")
	press(b, "createUser", "wrong", "401") // the console notes it
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
