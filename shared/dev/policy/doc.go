// Package policy tests the repository as a whole: which package imports which,
// how long files and functions are, which words are banned, and that the
// documentation of the settings matches the code. It holds tests only.
package policy
