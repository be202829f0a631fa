package policy_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// bannedWords are words for which PostgreSQL, ClickHouse, Go or plain English have
// a better one, which instead names.
var bannedWords = []struct{ pattern, instead string }{
	{`\b(nobody|somebody|anybody|everybody|whoever)\b`, "name the thing: client, program, user, process"},
	{`\bshall\b`, "must"},
	{`\bmend(s|ed|ing)?\b`, "fix"},
	{`\b(set|sets|setting) aside\b`, "written to the dead-letter table; renamed"},
	{`\blook(s|ed|ing)? after\b`, "maintain"},
	{`\bland(s|ed|ing)?\b`, "written, visible"},
	{`\bletters?\b`, "dead letter"},
	{`\b(told|tells)\b`, "reports, says, names"},
	{`\bstrokes\b`, "coalesced reads"},
	{`\b(crew|left-?overs?)\b`, "supervisor, orphans"},
	{`\b(patience|hurry)\b`, "timeout, force"},
	{`\bfor good\b`, "permanently"},
	{`\bdoubled\b`, "duplicated"},
	{`\bdoors?\b`, "way to publish"},
	{`\bweather\b`, "faults"},
	{`\bcure[sd]?\b`, "fix"},
	{`\bdoubt\w*`, "unknown, not proved"},
}

// plainUses are the places where a banned word is the right one.
var plainUses = regexp.MustCompile(`(?i)dead[ _-]?letters?|"nobody"|user nobody|(lower|upper)?-?case letters|letters(,| and) digits|letter or digit|letter-spacing|(capital|first|single) letters?`)

func TestWordsArePlain(t *testing.T) {
	var patterns []*regexp.Regexp
	for _, word := range bannedWords {
		patterns = append(patterns, regexp.MustCompile("(?i)"+word.pattern))
	}
	for _, name := range committed(t) {
		if name == "shared/dev/policy/plainwords_test.go" || name == "LICENSE" || filepath.Ext(name) == ".sum" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(root(t), name))
		if os.IsNotExist(err) || bytes.IndexByte(content, 0) >= 0 {
			continue // deleted but not yet committed, or not a text
		}
		require.NoError(t, err)
		number := 0
		for line := range strings.Lines(string(content)) {
			number++
			line = plainUses.ReplaceAllString(wordsOf(line), "")
			for i, pattern := range patterns {
				if word := pattern.FindString(line); word != "" {
					assert.Failf(t, "a word that is not plain", "%s:%d: %q; better: %s", name, number, word, bannedWords[i].instead)
				}
			}
		}
	}
}

var innerCapital = regexp.MustCompile(`([a-z0-9])([A-Z])`)

// wordsOf separates the words of identifiers.
func wordsOf(line string) string {
	return strings.ReplaceAll(innerCapital.ReplaceAllString(line, "$1 $2"), "_", " ")
}
