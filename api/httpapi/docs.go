package httpapi

import (
	"embed"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"

	"github.com/labstack/echo/v4"
	"go.yaml.in/yaml/v3"
)

// docsFiles are the description of this api and the page that shows it. The page
// needs nothing from elsewhere.
//
//go:embed docs
var docsFiles embed.FS

// pagePolicy lets the page use what this server sends, and nothing else.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func addDocs(e *echo.Echo) {
	e.GET("/openapi.yaml", docsFile("openapi.yaml", "application/yaml; charset=utf-8"))
	e.GET("/openapi.json", openAPIJSON)
	e.GET("/docs", docsFile("page.html", "text/html; charset=utf-8"))
	e.GET("/docs/page.css", docsFile("page.css", "text/css; charset=utf-8"))
	e.GET("/docs/page.js", docsFile("page.js", "text/javascript; charset=utf-8"))
	e.GET("/docs/icon.svg", docsFile("icon.svg", "image/svg+xml"))
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
	header.Set("Content-Security-Policy", pagePolicy)
	return c.Blob(http.StatusOK, contentType, content)
}

// converted is the description as JSON, which a browser can read by itself.
var converted = sync.OnceValues(func() ([]byte, error) {
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

// appendJSON writes node as JSON, in the order in which it was written: people
// read it.
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
	content, err := converted()
	if err != nil {
		return fmt.Errorf("openapi.yaml as JSON: %w", err)
	}
	return sendDocs(c, "application/json; charset=utf-8", content)
}
