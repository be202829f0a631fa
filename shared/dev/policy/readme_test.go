package policy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// maxReadmeBytes keeps the first page readable; details belong into the README of a folder.
const maxReadmeBytes = 16 << 10

func TestTheFirstReadmeStaysShort(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(root(t), "README.md"))
	require.NoError(t, err)
	assert.LessOrEqual(t, len(content), maxReadmeBytes)
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	console = regexp.MustCompile("(?s)\n```.*?\n```")
	noSlug  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

func TestLinksOfReadmesLeadSomewhere(t *testing.T) {
	checked := 0
	for _, name := range committed(t) {
		if !strings.HasSuffix(name, ".md") {
			continue
		}
		file := filepath.Join(root(t), filepath.FromSlash(name))
		for _, match := range link.FindAllStringSubmatch(prose(t, file), -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			checked++
			path, anchor, _ := strings.Cut(match[1], "#")
			target := file
			if path != "" {
				target = filepath.Join(filepath.Dir(file), filepath.FromSlash(path))
			}
			if _, err := os.Stat(target); !assert.NoError(t, err, "%s links to %s", name, match[1]) || anchor == "" {
				continue
			}
			assert.Contains(t, anchors(t, target), anchor, "%s links to %s", name, match[1])
		}
	}
	assert.Greater(t, checked, 30)
}

// prose returns a Markdown file without its blocks of code.
func prose(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	return console.ReplaceAllString(string(content), "")
}

// anchors are what the headings of a Markdown file can be linked by.
func anchors(t *testing.T, file string) []string {
	t.Helper()
	var list []string
	for _, match := range heading.FindAllStringSubmatch(prose(t, file), -1) {
		slug := noSlug.ReplaceAllString(strings.ToLower(match[1]), "")
		list = append(list, strings.ReplaceAll(slug, " ", "-"))
	}
	return list
}
