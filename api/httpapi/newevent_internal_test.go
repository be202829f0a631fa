package httpapi

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// FuzzCutValue compares with a decoder: the names and values of an object, as
// they stand.
func FuzzCutValue(f *testing.F) {
	for _, text := range []string{
		`{}`, ` { } `, `{"a":1}`, `{"a" : [1,{"b":"}"}] ,"c":"\\","d":"\"}" , "e":null}`, "{\"\\u0061\":-1.5e+3\n,\"b\":true\t}",
		`{"":{"":{}},"x":[[]],"y":""}`, `{"a":1,"a":[2],"a":"3"}`, `{"a":"\\\\\"","b":[ "]" ]}`,
		`[]`, " [ ] ", `[1]`, `[{"a":1} , [2],"]" ,null,-1.5e+3,[],""]`, "[[1\n]\n]\n", `{"a":[1],"b":{"c":"}"}}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		trimmed := bytes.TrimLeft(text, jsonSpace)
		if !json.Valid(text) || trimmed[0] != '{' && trimmed[0] != '[' {
			return
		}
		decoder := json.NewDecoder(bytes.NewReader(text))
		_, err := decoder.Token()
		require.NoError(t, err)
		rest := trimmed[1:]
		for decoder.More() {
			var wantValue, quoted, value json.RawMessage
			if trimmed[0] == '{' {
				wantName, err := decoder.Token()
				require.NoError(t, err)
				quoted, rest = cutValue(rest)
				name, problem := readString(quoted)
				require.Empty(t, problem)
				require.Equal(t, wantName, name)
			}
			require.NoError(t, decoder.Decode(&wantValue))
			value, rest = cutValue(rest)
			require.Equal(t, wantValue, value)
		}
		end, _ := cutValue(rest)
		require.Empty(t, end)
	})
}

// What is refused after a look at its beginning is not taken apart to its end.
func TestAnArrayCostsWhatIsLookedAt(t *testing.T) {
	body := "[" + strings.Repeat("1,", 500_000) + "1]"
	allocations := testing.AllocsPerRun(5, func() {
		source, err := openJSON([]byte(body))
		require.NoError(t, err)
		for range 20 {
			n, err := source.Next()
			require.NoError(t, err)
			require.Len(t, n.Unreadable, 1)
		}
	})
	assert.Less(t, allocations, 1000.0, "for 500,001 values")
}
