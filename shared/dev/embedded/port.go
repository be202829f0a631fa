package embedded

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Free ports are searched below those that Linux and macOS give to connections and to
// listeners without a port, so that none of them takes the port meanwhile.
const firstFreePort, freePorts = 12000, 18000

// portsPerProcess is where the next process begins, so that two at a time do not give the same one:
// a program may not listen on its port yet, or is about to start on it again.
const portsPerProcess = 100

var portsTried atomic.Int64

// FreePort returns a port on Host that no program listens on, and never the same one twice.
func FreePort() (int, error) {
	failure := errors.New("all that were tried are taken")
	for range 100 {
		port := firstFreePort + (os.Getpid()*portsPerProcess+int(portsTried.Add(1)))%freePorts
		listener, err := net.Listen("tcp", net.JoinHostPort(Host, strconv.Itoa(port)))
		if err == nil {
			return port, listener.Close()
		}
		failure = err
	}
	return 0, fmt.Errorf("find a free port: %w", failure)
}

// checkPort returns an error that names the program using port, if any. variable
// is the environment variable that sets another port.
func checkPort(port int, engine, variable string) error {
	listener, err := net.Listen("tcp", net.JoinHostPort(Host, strconv.Itoa(port)))
	if err == nil {
		return listener.Close()
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s cannot listen on port %d: %w", engine, port, err)
	}
	return fmt.Errorf("port %d for %s is in use%s: stop that program, or set %s to a free port",
		port, engine, portOwner(port), variable)
}

// portOwner returns " by NAME (process PID)" for the program that listens on
// port, "" if that cannot be found out.
func portOwner(port int) string {
	inode := listeningInode(port)
	if inode == "" {
		return ""
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != "socket:["+inode+"]" {
			continue
		}
		pid := strings.Split(link, "/")[2]
		name, _ := os.ReadFile("/proc/" + pid + "/comm")
		return fmt.Sprintf(" by %s (process %s)", strings.TrimSpace(string(name)), pid)
	}
	return ""
}

// listeningInode finds the socket that listens on port in /proc/net, "" if none.
func listeningInode(port int) string {
	const listening = "0A"
	want := ":" + strings.ToUpper(hex.EncodeToString([]byte{byte(port >> 8), byte(port)}))
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		raw, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			f := strings.Fields(line)
			if len(f) > 9 && strings.HasSuffix(f[1], want) && f[3] == listening {
				return f[9]
			}
		}
	}
	return ""
}
