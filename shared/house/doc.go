// Package house keeps the rules of this repository that a compiler does not
// know: who imports whom, how long things may get, what no file may say, and
// that the documentation of the settings is the truth. It holds tests only.
package house
