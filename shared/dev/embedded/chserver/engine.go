package chserver

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"
)

// engine is the loaded ClickHouse library. One process has one data directory
// and any number of sessions on it, which run concurrently.
type engine struct {
	dataDir string
	config  string // path of the configuration

	connect   func(argc int32, argv **byte) *uintptr
	closeConn func(conn *uintptr)
	run       runFunc
	stream    runFunc
	fetch     func(conn, stream uintptr) uintptr
	cancel    func(conn, stream uintptr)
	destroy   func(result uintptr)
	errorText func(result uintptr) string
	buffer    func(result uintptr) *byte
	length    func(result uintptr) uintptr
	shutdown  func() int32
}

// runFunc is the C signature of a query with parameters; lengths are in bytes.
type runFunc func(conn uintptr, sql *byte, sqlLen uintptr, format *byte, formatLen uintptr,
	names **byte, nameLens *uintptr, values **byte, valueLens *uintptr, count uintptr) uintptr

// loadEngine opens libchdb.so. The library stays loaded until the process ends.
func loadEngine(libPath, dataDir string) (*engine, error) {
	lib, err := purego.Dlopen(libPath, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("load ClickHouse library: %w", err)
	}
	e := &engine{dataDir: dataDir, config: filepath.Join(dataDir, "config.xml")}
	var setSignalHandlers func(enabled int32)
	for name, fn := range map[string]any{
		"chdb_connect":                     &e.connect,
		"chdb_close_conn":                  &e.closeConn,
		"chdb_query_with_params_n":         &e.run,
		"chdb_stream_query_with_params_n":  &e.stream,
		"chdb_stream_fetch_result":         &e.fetch,
		"chdb_stream_cancel_query":         &e.cancel,
		"chdb_destroy_query_result":        &e.destroy,
		"chdb_result_error":                &e.errorText,
		"chdb_result_buffer":               &e.buffer,
		"chdb_result_length":               &e.length,
		"chdb_shutdown":                    &e.shutdown,
		"chdb_set_signal_handlers_enabled": &setSignalHandlers,
	} {
		symbol, err := purego.Dlsym(lib, name)
		if err != nil {
			return nil, fmt.Errorf("load ClickHouse library: %w", err)
		}
		purego.RegisterFunc(fn, symbol)
	}
	if err := keepSignalHandlers(func() { setSignalHandlers(0) }); err != nil {
		return nil, fmt.Errorf("load ClickHouse library: %w", err)
	}
	return e, nil
}

// session is one connection to the engine, with its own settings, current
// database and temporary tables. Not safe for concurrent use.
type session struct {
	engine *engine
	handle *uintptr
}

func (e *engine) open() (*session, error) {
	args := []*byte{
		cString("clickhouse"), cString("--path=" + e.dataDir), cString("--implicit_select=0"), cString("--config-file=" + e.config),
	}
	handle := e.connect(int32(len(args)), &args[0])
	runtime.KeepAlive(args)
	if handle == nil {
		return nil, errors.New("open ClickHouse engine: refused, see its message on standard error; " +
			"is another process using the data directory " + e.dataDir + "?")
	}
	return &session{engine: e, handle: handle}, nil
}

func (s *session) close() { s.engine.closeConn(s.handle) }

// stream runs a SELECT and hands every block of its result to emit, in format
// Native. The bytes are valid during the call only. An error of emit stops the
// query and is returned.
func (s *session) stream(sql string, params []parameter, emit func(native []byte) error) error {
	e, conn := s.engine, *s.handle
	stream := s.call(e.stream, sql, params)
	defer e.destroy(stream)
	if text := e.errorText(stream); text != "" {
		return engineError(text)
	}
	for {
		more, err := s.take(e.fetch(conn, stream), emit)
		if err != nil {
			e.cancel(conn, stream)
			return err
		}
		if !more {
			return nil
		}
	}
}

// query runs any one statement and hands its whole result, which may be empty, to emit.
func (s *session) query(sql string, params []parameter, emit func(native []byte) error) error {
	_, err := s.take(s.call(s.engine.run, sql, params), emit)
	return err
}

// exec runs a statement and drops its result.
func (s *session) exec(sql string) error {
	return s.query(sql, nil, func([]byte) error { return nil })
}

// take emits a result's bytes and frees it; more is false for an empty one.
func (s *session) take(result uintptr, emit func([]byte) error) (more bool, err error) {
	e := s.engine
	if result == 0 {
		return false, nil
	}
	defer e.destroy(result)
	if text := e.errorText(result); text != "" {
		return false, engineError(text)
	}
	n := int(e.length(result))
	if n == 0 {
		return false, nil
	}
	return true, emit(unsafe.Slice(e.buffer(result), n))
}

// whole ends a query of the server itself, whatever a profile does to results.
const whole = " SETTINGS limit = 0, offset = 0, additional_result_filter = ''"

const nativeFormat = "Native"

func (s *session) call(run runFunc, sql string, params []parameter) uintptr {
	n := len(params)
	names, nameLens := make([]*byte, n+1), make([]uintptr, n+1)
	values, valueLens := make([]*byte, n+1), make([]uintptr, n+1)
	for i, p := range params {
		names[i], nameLens[i] = cString(p.name), uintptr(len(p.name))
		values[i], valueLens[i] = cString(p.value), uintptr(len(p.value))
	}
	text, format := cString(sql), cString(nativeFormat)
	result := run(*s.handle, text, uintptr(len(sql)), format, uintptr(len(nativeFormat)),
		&names[0], &nameLens[0], &values[0], &valueLens[0], uintptr(n))
	runtime.KeepAlive(names)
	runtime.KeepAlive(values)
	return result
}

// parameter is a value for a {name:Type} placeholder, in the engine's escaped text format.
type parameter struct{ name, value string }

func cString(s string) *byte {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return &b[0]
}
