package users_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"diehard/api/users"
	"diehard/shared/dev/testenv"
)

// BenchmarkCreate is one user and its event on one connection, commit included.
func BenchmarkCreate(b *testing.B) {
	service := users.New(testenv.New(b).Pool, "Local")
	n := users.NewUser{FirstName: "Test", LastName: "User"}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		n.Email = fmt.Sprintf("user%d@example.com", i)
		_, err := create(b.Context(), service, n)
		require.NoError(b, err)
	}
}
