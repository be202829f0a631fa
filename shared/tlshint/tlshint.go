// Package tlshint explains why a server's TLS certificate was refused.
package tlshint

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
)

// Hint says what to do about err, or "" if it is not about a server's certificate.
// authority and name are the settings of the trusted authority and of the expected
// name.
func Hint(err error, authority, name string) string {
	refused, ok := errors.AsType[*tls.CertificateVerificationError](err)
	if !ok {
		return ""
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](refused); ok {
		return "the certificate of the server is signed by an authority that is not trusted: set " + authority + " to the PEM file of the right one"
	}
	if _, ok := errors.AsType[x509.HostnameError](refused); ok {
		return "the certificate of the server is for another name: connect to a name that is in it, or set " + name
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](refused); ok && invalid.Reason == x509.Expired {
		return "the certificate of the server has expired or is not valid yet: renew it, or correct the clock"
	}
	return "the certificate of the server must not be used for a server: issue another one"
}
