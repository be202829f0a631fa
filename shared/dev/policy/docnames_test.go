package policy_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var lowerCaseWord = regexp.MustCompile(`^[a-z]\w*`)

// A comment that begins with a lower-case word begins with a name: a rename leaves the
// comments behind, and the linter looks at exported names alone.
func TestDocCommentsHaveTheNameOfWhatTheyDocument(t *testing.T) {
	for _, name := range committed(t) {
		if filepath.Ext(name) != ".go" {
			continue
		}
		files := token.NewFileSet()
		tree, err := parser.ParseFile(files, filepath.Join(root(t), name), nil, parser.ParseComments|parser.SkipObjectResolution)
		require.NoError(t, err)
		ast.Inspect(tree, func(node ast.Node) bool {
			doc, names := documented(node)
			if word := lowerCaseWord.FindString(doc.Text()); word != "" {
				assert.Containsf(t, names, word, "%s: the first word of the comment", files.Position(doc.Pos()))
			}
			return true
		})
	}
}

// documented returns the comment of a declaration and the names it may begin with.
func documented(node ast.Node) (doc *ast.CommentGroup, names []string) {
	switch d := node.(type) {
	case *ast.FuncDecl:
		return d.Doc, []string{d.Name.Name}
	case *ast.TypeSpec:
		return d.Doc, []string{d.Name.Name}
	case *ast.ValueSpec:
		for _, name := range d.Names {
			names = append(names, name.Name)
		}
		return d.Doc, names
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			_, more := documented(spec)
			names = append(names, more...)
		}
		return d.Doc, names
	default:
		return nil, nil
	}
}
