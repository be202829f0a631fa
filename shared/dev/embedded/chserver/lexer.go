package chserver

import "strings"

// lexer splits SQL into tokens, one at a time, so that statements with much
// inline data need not be read to their end.
type lexer struct {
	sql string
	pos int
}

type tokenKind uint8

const (
	tokenEnd tokenKind = iota
	tokenWord
	tokenQuoted // identifier in backquotes or double quotes
	tokenString
	tokenOther // one character of punctuation, or a number
)

type token struct {
	kind       tokenKind
	start, end int
	text       string
}

// is reports whether the token is the keyword, in upper or lower case.
func (t token) is(keyword string) bool {
	return t.kind == tokenWord && strings.EqualFold(t.text, keyword)
}

func (t token) punct(c string) bool { return t.kind == tokenOther && t.text == c }

// identifier returns the name the token spells.
func (t token) identifier() string {
	if t.kind != tokenQuoted || len(t.text) < 2 {
		return t.text
	}
	if body, ok := strings.CutPrefix(t.text, "“"); ok {
		return strings.TrimSuffix(body, "”")
	}
	body := t.text[1 : len(t.text)-1]
	quote := t.text[:1]
	return strings.NewReplacer(`\\`, `\`, `\`+quote, quote, quote+quote, quote).Replace(body)
}

func (l *lexer) next() token {
	l.skipBlank()
	start := l.pos
	if start >= len(l.sql) {
		return token{kind: tokenEnd, start: start, end: start}
	}
	kind := tokenOther
	switch c := l.sql[start]; {
	case c == '\'':
		kind = tokenString
		l.skipQuoted(c)
	case c == '`' || c == '"':
		kind = tokenQuoted
		l.skipQuoted(c)
	case strings.HasPrefix(l.sql[start:], "‘"):
		kind = tokenString
		l.skipPast("’")
	case strings.HasPrefix(l.sql[start:], "“"):
		kind = tokenQuoted
		l.skipPast("”")
	case c == '$' && l.skipHeredoc():
		kind = tokenString
	case isWordStart(c):
		kind = tokenWord
		l.skipWord()
	case c >= '0' && c <= '9':
		l.skipWord()
	default:
		l.pos++
	}
	return token{kind: kind, start: start, end: l.pos, text: l.sql[start:l.pos]}
}

func (l *lexer) peek() token {
	pos := l.pos
	t := l.next()
	l.pos = pos
	return t
}

func (l *lexer) skipWord() {
	for l.pos < len(l.sql) && (isWordStart(l.sql[l.pos]) || l.sql[l.pos] >= '0' && l.sql[l.pos] <= '9') {
		l.pos++
	}
}

// skipQuoted skips text in quotes, where a backslash or a second quote escapes.
func (l *lexer) skipQuoted(quote byte) {
	for l.pos++; l.pos < len(l.sql); l.pos++ {
		switch l.sql[l.pos] {
		case '\\':
			l.pos++
		case quote:
			if l.pos+1 < len(l.sql) && l.sql[l.pos+1] == quote {
				l.pos++
				continue
			}
			l.pos++
			return
		}
	}
	l.pos = len(l.sql)
}

// skipBlank skips white space and comments.
func (l *lexer) skipBlank() {
	for l.pos < len(l.sql) {
		rest := l.sql[l.pos:]
		switch {
		case strings.ContainsRune(" \t\r\n\f\v", rune(rest[0])):
			l.pos++
		case strings.HasPrefix(rest, "--"), strings.HasPrefix(rest, "//"), strings.HasPrefix(rest, "# "), strings.HasPrefix(rest, "#!"):
			l.skipPast("\n")
		case strings.HasPrefix(rest, "/*"):
			l.skipComment()
		default:
			return
		}
	}
}

// skipComment skips a comment that may contain others.
func (l *lexer) skipComment() {
	for depth := 0; l.pos < len(l.sql); {
		switch rest := l.sql[l.pos:]; {
		case strings.HasPrefix(rest, "/*"):
			depth++
			l.pos += 2
		case strings.HasPrefix(rest, "*/"):
			depth--
			l.pos += 2
		default:
			l.pos++
		}
		if depth == 0 {
			return
		}
	}
}

// skipHeredoc skips text between two equal tags, such as $$…$$ or $tag$…$tag$. It
// reports false if there is none at the position.
func (l *lexer) skipHeredoc() bool {
	rest := l.sql[l.pos:]
	size := strings.IndexByte(rest[1:], '$') + 2
	if size < 2 {
		return false
	}
	end := strings.Index(rest[size:], rest[:size])
	if end < 0 {
		return false
	}
	l.pos += size + end + size
	return true
}

func (l *lexer) skipPast(end string) {
	if i := strings.Index(l.sql[l.pos:], end); i >= 0 {
		l.pos += i + len(end)
		return
	}
	l.pos = len(l.sql)
}

// skipGroup skips to the parenthesis that closes the one just read, and returns its
// position. An unclosed group ends with the text.
func (l *lexer) skipGroup() (end int) {
	depth := 1
	for {
		t := l.next()
		switch {
		case t.punct("("):
			depth++
		case t.punct(")"):
			depth--
		}
		if depth == 0 || t.kind == tokenEnd {
			return t.start
		}
	}
}

func isWordStart(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
