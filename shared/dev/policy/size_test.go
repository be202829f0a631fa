package policy_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	maxFileLines     = 400 // one subject
	maxFunctionLines = 80  // a screen
)

func TestFilesAndFunctionsStaySmall(t *testing.T) {
	for _, p := range packages(t) {
		for _, name := range p.GoFiles {
			files := token.NewFileSet()
			path := filepath.Join(p.Dir, name)
			tree, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			place := filepath.Join(p.name(), name)
			assert.LessOrEqualf(t, files.File(tree.Pos()).LineCount()-1, maxFileLines, "lines of %s", place)
			for _, declaration := range tree.Decls {
				if function, ok := declaration.(*ast.FuncDecl); ok {
					lines := files.Position(function.End()).Line - files.Position(function.Pos()).Line + 1
					assert.LessOrEqualf(t, lines, maxFunctionLines, "lines of %s in %s", function.Name.Name, place)
				}
			}
		}
	}
}
