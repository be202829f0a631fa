package chserver

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
)

var settingName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// applySettings makes the session's settings those of the query and nothing
// else: what an earlier query had set goes back to its default. Settings that
// did not change since then cost nothing.
func (c *client) applySettings(q *request, settings []proto.Setting) error {
	want := maps.Clone(outputSettings)
	optional := make(map[string]bool)
	if err := c.hideParts(q, want, settings); err != nil {
		return err
	}
	for _, s := range settings {
		if !settingName.MatchString(s.Key) {
			return unknownSetting(s.Key)
		}
		want[s.Key] = settingValue(s)
		optional[s.Key] = !s.Important && !s.Custom
	}
	if maps.Equal(want, c.settings) {
		return nil
	}
	var changes []string
	for _, name := range slices.Sorted(maps.Keys(c.settings)) {
		if _, keep := want[name]; !keep {
			changes = append(changes, name+" = DEFAULT")
		}
	}
	err := c.set(changes)
	if len(changes) > 0 && c.server.profile != "" || err != nil { // DEFAULT is not the profile's value; readonly cannot be undone
		err = c.renewSession()
	}
	if err == nil {
		err = c.setNew(want, optional)
	}
	if err != nil {
		return errors.Join(err, c.renewSession())
	}
	c.settings = want
	return nil
}

// hideParts adds the filter of the client's replica to want, or waits for it if the
// query asks for sequential consistency. An INSERT gets no filter, which the engine
// would apply to the block that it gives to views.
func (c *client) hideParts(q *request, want map[string]string, settings []proto.Setting) error {
	for _, s := range settings {
		if s.Key == "select_sequential_consistency" && s.Value != "0" {
			return c.replica.sync()
		}
	}
	if filters := c.replica.filters(); filters != "" && q.statement.verb != "INSERT" {
		want["additional_table_filters"] = filters
	}
	return nil
}

// setNew applies the settings and, when the engine does not know one, leaves
// out those that the client called unimportant.
func (c *client) setNew(want map[string]string, optional map[string]bool) error {
	var changes []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		changes = append(changes, name+" = "+want[name])
	}
	err := c.set(changes)
	if !isCode(err, proto.ErrUnknownSetting) {
		return err
	}
	for i, name := range slices.Sorted(maps.Keys(want)) {
		err := c.set(changes[i : i+1])
		switch {
		case optional[name] && isCode(err, proto.ErrUnknownSetting):
			delete(want, name)
		case err != nil:
			return err
		}
	}
	return nil
}

func (c *client) set(changes []string) error {
	if len(changes) == 0 {
		return nil
	}
	return c.session.exec("SET " + strings.Join(changes, ", "))
}

// settingValue renders the value as SQL. Custom settings come as a quoted dump already.
func settingValue(s proto.Setting) string {
	if s.Custom && strings.HasPrefix(s.Value, "'") {
		return s.Value
	}
	return quote(s.Value)
}

func unknownSetting(name string) error {
	return newException(proto.ErrUnknownSetting, "UNKNOWN_SETTING", "DB::Exception: Unknown setting '"+name+"'")
}

func isCode(err error, code proto.Error) bool {
	e, ok := errors.AsType[*exception](err)
	return ok && e.code == code
}
