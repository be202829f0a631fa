package policy_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// licences of modules that may be linked into the programs, each with a sentence of
// its text. All are permissive; MPL-2.0 covers changes of its own files only.
var licences = []struct {
	name string
	text *regexp.Regexp
}{
	{"Apache-2.0", regexp.MustCompile(`Apache License\s+Version 2\.0`)},
	{"MIT", regexp.MustCompile(`Permission is hereby granted, free of charge, to any\s+person\s+obtaining\s+a\s+copy`)},
	{"BSD", regexp.MustCompile(`Redistribution and use in source and binary forms, with or without\s+modification`)},
	{"ISC", regexp.MustCompile(`Permission to use, copy, modify, and/or distribute this software for any`)},
	{"MPL-2.0", regexp.MustCompile(`Mozilla Public License,? [Vv]ersion 2\.0`)},
	{"Unlicense", regexp.MustCompile(`This is free and unencumbered software released into the public domain`)},
}

// unwanted licences restrict who distributes the programs.
var unwanted = regexp.MustCompile(`GNU (AFFERO |LESSER |LIBRARY )?GENERAL PUBLIC LICENSE|Business Source License|Server Side Public License|Commons Clause`)

// linkedModule is a module with code in a program.
type linkedModule struct{ Path, Version, Dir string }

// linked lists the modules of everything that programs import.
func linked(t *testing.T, programs ...string) map[string]linkedModule {
	t.Helper()
	list := exec.CommandContext(t.Context(), "go", append([]string{"list", "-deps", "-json=Module"}, programs...)...)
	list.Dir = root(t)
	list.Stderr = os.Stderr
	output, err := list.Output()
	require.NoError(t, err, "go list -deps")
	modules := map[string]linkedModule{}
	decoder := json.NewDecoder(bytes.NewReader(output))
	for decoder.More() {
		var next struct{ Module *linkedModule }
		require.NoError(t, decoder.Decode(&next))
		if next.Module != nil && next.Module.Path != module {
			modules[next.Module.Path] = *next.Module
		}
	}
	return modules
}

func TestEveryLinkedModuleHasAnAllowedLicence(t *testing.T) {
	modules := linked(t, "./api", "./streamer")
	require.Greater(t, len(modules), 20, "go list found too little to be true")
	for _, m := range modules {
		text := licenceOf(t, m)
		if !assert.NotEmpty(t, text, "%s %s has no licence file", m.Path, m.Version) {
			continue
		}
		assert.NotRegexp(t, unwanted, text, "%s %s", m.Path, m.Version)
		known := false
		for _, l := range licences {
			known = known || l.text.MatchString(text)
		}
		assert.True(t, known, "%s %s has a licence that is not in the list:\n%.300s", m.Path, m.Version, text)
	}
}

// licenceOf returns the texts of a module's licence files.
func licenceOf(t *testing.T, m linkedModule) string {
	t.Helper()
	entries, err := os.ReadDir(m.Dir)
	require.NoError(t, err)
	var text strings.Builder
	for _, entry := range entries {
		name := strings.ToUpper(entry.Name())
		if entry.IsDir() || !strings.HasPrefix(name, "LICEN") && !strings.HasPrefix(name, "COPYING") {
			continue
		}
		content, err := os.ReadFile(filepath.Join(m.Dir, entry.Name()))
		require.NoError(t, err)
		text.Write(content)
	}
	return text.String()
}

// What tests need must not reach the programs.
func TestTheProgramsLinkNoTestLibraries(t *testing.T) {
	for path := range linked(t, "./api", "./streamer") {
		for _, prefix := range []string{"github.com/stretchr/testify", "github.com/testcontainers", "k8s.io", "github.com/chromedp", "github.com/Shopify"} {
			assert.False(t, strings.HasPrefix(path, prefix), path)
		}
	}
}
