package httpapi

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzCutValue compares with a decoder: the names and values of an object, as
// they stand.
func FuzzCutValue(f *testing.F) {
	for _, text := range []string{
		`{}`, ` { } `, `{"a":1}`, `{"a" : [1,{"b":"}"}] ,"c":"\\","d":"\"}" , "e":null}`, "{\"\\u0061\":-1.5e+3\n,\"b\":true\t}",
		`{"":{"":{}},"x":[[]],"y":""}`, `{"a":1,"a":[2],"a":"3"}`, `{"a":"\\\\\"","b":[ "]" ]}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		trimmed := bytes.TrimLeft(text, jsonSpace)
		if !json.Valid(text) || trimmed[0] != '{' {
			return
		}
		decoder := json.NewDecoder(bytes.NewReader(text))
		_, err := decoder.Token()
		require.NoError(t, err)
		rest := trimmed[1:]
		for decoder.More() {
			wantName, err := decoder.Token()
			require.NoError(t, err)
			var wantValue, quoted, value json.RawMessage
			require.NoError(t, decoder.Decode(&wantValue))
			quoted, rest = cutValue(rest)
			value, rest = cutValue(rest)
			name, problem := readString(quoted)
			require.Empty(t, problem)
			require.Equal(t, wantName, name)
			require.Equal(t, wantValue, value)
		}
		end, _ := cutValue(rest)
		require.Empty(t, end)
	})
}
