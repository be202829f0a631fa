package migrations

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"text/template"
)

// rendered is a file system whose SQL files are templates, filled with data. goose
// reads the results.
type rendered struct {
	fs.FS
	data any
}

// Open implements [fs.FS].
func (r rendered) Open(name string) (fs.File, error) {
	file, err := r.FS.Open(name)
	if err != nil || path.Ext(name) != ".sql" {
		return file, err
	}
	source, err := fs.ReadFile(r.FS, name)
	if err != nil {
		return nil, err
	}
	parsed, err := template.New(name).Option("missingkey=error").Parse(string(source))
	if err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	var sql bytes.Buffer
	if err := parsed.Execute(&sql, r.data); err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	return renderedFile{file, &sql}, nil
}

// renderedFile reads from sql and is file otherwise.
type renderedFile struct {
	fs.File
	sql *bytes.Buffer
}

func (f renderedFile) Read(p []byte) (int, error) { return f.sql.Read(p) }
