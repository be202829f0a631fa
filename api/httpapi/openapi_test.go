package httpapi_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/api/httpapi"
	"diehard/shared/dev/testenv"
	"diehard/shared/telemetry"
)

// description is docs/openapi.yaml, read once.
var description = sync.OnceValues(func() (*v3.Document, error) {
	content, err := os.ReadFile("docs/openapi.yaml")
	if err != nil {
		return nil, err
	}
	document, err := libopenapi.NewDocument(content)
	if err != nil {
		return nil, err
	}
	model, err := document.BuildV3Model()
	if err != nil {
		return nil, err
	}
	return &model.Model, nil
})

var contract = sync.OnceValues(func() (validator.Validator, error) {
	document, err := description()
	if err != nil {
		return nil, err
	}
	return validator.NewValidatorFromV3Model(document, config.WithFormatAssertions(),
		// What a text is and who may ask is for other tests.
		config.WithoutSecurityValidation()), nil
})

// requireAsDescribed checks an answer against the description. Addresses that
// are not described (there is nothing there) have no say.
func requireAsDescribed(t *testing.T, request *http.Request, response *http.Response, body []byte) {
	t.Helper()
	if !described(t, request) {
		return
	}
	check, err := contract()
	require.NoError(t, err)
	copied := *response
	copied.Body = io.NopCloser(bytes.NewReader(body))
	ok, problems := check.ValidateHttpResponse(request, &copied)
	for _, p := range problems {
		t.Errorf("%s %s %d: %s: %s %v\n%s", request.Method, request.URL.Path, response.StatusCode, p.Message, p.Reason, p.SchemaValidationErrors, body)
	}
	require.True(t, ok)
}

var pathParameter = regexp.MustCompile(`\\{\w+\\}`) // as regexp.QuoteMeta leaves it

func described(t *testing.T, request *http.Request) bool {
	t.Helper()
	document, err := description()
	require.NoError(t, err)
	for path, item := range document.Paths.PathItems.FromOldest() {
		pattern := "^" + pathParameter.ReplaceAllString(regexp.QuoteMeta(path), "[^/]+") + "$"
		operation := item.GetOperations().GetOrZero(strings.ToLower(request.Method))
		if operation != nil && regexp.MustCompile(pattern).MatchString(request.URL.Path) {
			return true
		}
	}
	return false
}

func TestTheDescriptionIsValid(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("docs/openapi.yaml")
	require.NoError(t, err)
	document, err := libopenapi.NewDocument(content)
	require.NoError(t, err)
	check, errs := validator.NewValidator(document)
	require.Empty(t, errs)
	ok, problems := check.ValidateDocument()
	assert.True(t, ok, "%v", problems)
}

func TestEveryRouteIsDescribedAndViceVersa(t *testing.T) {
	t.Parallel()
	document, err := description()
	require.NoError(t, err)
	var want []string
	for path, item := range document.Paths.PathItems.FromOldest() {
		for method := range item.GetOperations().FromOldest() {
			want = append(want, strings.ToUpper(method)+" "+path)
		}
	}
	parameter := regexp.MustCompile(`:(\w+)`)
	var got []string
	for _, route := range httpapi.New(httpapi.Deps{Registry: telemetry.NewRegistry(), MaxRequests: 1}).Routes() {
		if strings.HasPrefix(route.Path, "/docs/") || route.Method == http.MethodHead {
			continue // parts of the page; HEAD is GET without a body
		}
		got = append(got, route.Method+" "+parameter.ReplaceAllString(route.Path, "{$1}"))
	}
	assert.ElementsMatch(t, want, got)
}

// Every example is taken by the running api, and answered as described.
func TestExamplesWork(t *testing.T) {
	t.Parallel()
	a := start(t, testenv.New(t).PostgresURL, nil)
	document, err := description()
	require.NoError(t, err)
	tried := 0
	for path, item := range document.Paths.PathItems.FromOldest() {
		for method, operation := range item.GetOperations().FromOldest() {
			if operation.RequestBody == nil {
				continue
			}
			for kind, media := range operation.RequestBody.Content.FromOldest() {
				for _, body := range exampleTexts(t, media) {
					requireRequestAsDescribed(t, strings.ToUpper(method), path, kind, body)
					got := a.do(t, strings.ToUpper(method), path, body, "Content-Type", kind)
					assert.Equal(t, 2, got.status/100, "%s %s: %s", path, body, got.body)
					tried++
				}
			}
		}
	}
	assert.Equal(t, 4, tried)
}

func exampleTexts(t *testing.T, media *v3.MediaType) (texts []string) {
	t.Helper()
	add := func(decode func(any) error) {
		var value any
		require.NoError(t, decode(&value))
		text, isText := value.(string)
		if !isText {
			encoded, err := json.Marshal(value)
			require.NoError(t, err)
			text = string(encoded)
		}
		texts = append(texts, text)
	}
	if media.Example != nil {
		add(media.Example.Decode)
	}
	if media.Examples != nil {
		for _, example := range media.Examples.FromOldest() {
			add(example.Value.Decode)
		}
	}
	return texts
}

// requireRequestAsDescribed checks the body of an example against its schema.
func requireRequestAsDescribed(t *testing.T, method, path, kind, body string) {
	t.Helper()
	check, err := contract()
	require.NoError(t, err)
	parts := []string{body}
	if kind == ndjson { // each line is as the same event in JSON
		kind, parts = "application/json", strings.Split(strings.TrimSpace(body), "\n")
	}
	for _, part := range parts {
		request := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(part))
		request.Header.Set("Content-Type", kind)
		ok, problems := check.ValidateHttpRequest(request)
		assert.True(t, ok, "%s %s: %v", path, part, problems)
	}
}

// The examples of answers are as their schemas say.
func TestExamplesOfAnswers(t *testing.T) {
	t.Parallel()
	document, err := description()
	require.NoError(t, err)
	tried := 0
	for path, item := range document.Paths.PathItems.FromOldest() {
		for method, operation := range item.GetOperations().FromOldest() {
			for code, response := range operation.Responses.Codes.FromOldest() {
				for kind, media := range response.Content.FromOldest() {
					for _, body := range exampleTexts(t, media) {
						requireAnswerAsDescribed(t, strings.ToUpper(method), path, code, kind, body)
						tried++
					}
				}
			}
		}
	}
	assert.GreaterOrEqual(t, tried, 8)
}

func requireAnswerAsDescribed(t *testing.T, method, path, code, kind, body string) {
	t.Helper()
	status, err := strconv.Atoi(code)
	require.NoError(t, err)
	path = strings.ReplaceAll(path, "{id}", uuid.NewString())
	request := httptest.NewRequestWithContext(t.Context(), method, path, http.NoBody)
	response := &http.Response{StatusCode: status, Header: http.Header{
		"Content-Type": {kind}, "X-Request-Id": {"example"}, "Location": {"/users/1"},
	}}
	requireAsDescribed(t, request, response, []byte(body))
}
