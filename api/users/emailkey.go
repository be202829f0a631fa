package users

import (
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// emailKey returns what two addresses have in common that differ in case alone, or in
// how their accents are encoded. It is computed here and not by lower(), whose result
// depends on the locale of the database.
func emailKey(email string) string {
	return norm.NFC.String(strings.Map(foldRune, norm.NFC.String(email)))
}

// foldRune returns one rune for all that are equal without regard to case, such as
// σ for Σ, σ and ς.
func foldRune(r rune) rune {
	first := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		first = min(first, f)
	}
	return unicode.ToLower(first)
}
