package httpapi

import (
	"embed"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"

	"github.com/labstack/echo/v4"
	"go.yaml.in/yaml/v3"
)

// docsFiles holds the description of the api and the page that shows it. The page
// loads nothing from other servers.
//
//go:embed docs
var docsFiles embed.FS

// pagePolicy restricts the page to files of this server.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func addDocs(e *echo.Echo) {
	get(e, "/openapi.yaml", docsFile("openapi.yaml", "application/yaml; charset=utf-8"))
	get(e, "/openapi.json", openAPIJSON)
	get(e, "/docs", docsFile("page.html", "text/html; charset=utf-8"))
	get(e, "/docs/page.css", docsFile("page.css", "text/css; charset=utf-8"))
	get(e, "/docs/page.js", docsFile("page.js", "text/javascript; charset=utf-8"))
	get(e, "/docs/icon.svg", docsFile("icon.svg", "image/svg+xml"))
}

func docsFile(name, contentType string) echo.HandlerFunc {
	return func(c echo.Context) error {
		content, err := docsFiles.ReadFile("docs/" + name)
		if err != nil {
			return fmt.Errorf("page of the documentation: %w", err)
		}
		return sendDocs(c, contentType, content)
	}
}

func sendDocs(c echo.Context, contentType string, content []byte) error {
	header := c.Response().Header()
	header.Set("Cache-Control", "no-cache")
	header.Set(echo.HeaderContentLength, strconv.Itoa(len(content))) // also for HEAD
	header.Set("Content-Security-Policy", pagePolicy)
	return c.Blob(http.StatusOK, contentType, content)
}

// openAPIAsJSON returns the description as JSON, which a browser can parse.
var openAPIAsJSON = sync.OnceValues(func() ([]byte, error) {
	content, err := docsFiles.ReadFile("docs/openapi.yaml")
	if err != nil {
		return nil, err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(content, &document); err != nil {
		return nil, err
	}
	return appendJSON(nil, &document)
})

// appendJSON appends node as JSON and keeps the order of keys.
func appendJSON(text []byte, node *yaml.Node) ([]byte, error) {
	switch node.Kind {
	case yaml.DocumentNode:
		return appendJSON(text, node.Content[0])
	case yaml.AliasNode:
		return appendJSON(text, node.Alias)
	case yaml.MappingNode, yaml.SequenceNode:
		return appendChildren(text, node)
	default:
		var value any
		if err := node.Decode(&value); err != nil {
			return nil, err
		}
		scalar, err := json.Marshal(value)
		return append(text, scalar...), err
	}
}

func appendChildren(text []byte, node *yaml.Node) (_ []byte, err error) {
	brackets := "[]"
	if node.Kind == yaml.MappingNode {
		brackets = "{}"
	}
	text = append(text, brackets[0])
	for i, child := range node.Content {
		switch {
		case i > 0 && node.Kind == yaml.MappingNode && i%2 == 1:
			text = append(text, ':')
		case i > 0:
			text = append(text, ',')
		}
		if text, err = appendJSON(text, child); err != nil {
			return nil, err
		}
	}
	return append(text, brackets[1]), nil
}

func openAPIJSON(c echo.Context) error {
	content, err := openAPIAsJSON()
	if err != nil {
		return fmt.Errorf("openapi.yaml as JSON: %w", err)
	}
	return sendDocs(c, "application/json; charset=utf-8", content)
}
