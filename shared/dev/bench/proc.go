package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is USER_HZ, which is 100 on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// cpuOfTree is the CPU time of a process and of its children, the ended ones included.
func cpuOfTree(pid int) time.Duration {
	total := cpuOf(pid, true)
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return total
	}
	for _, path := range stats {
		if f := statFields(path); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err == nil {
				total += cpuOf(child, false)
			}
		}
	}
	return total
}

// cpuOf is utime + stime, and with ended those of children that were waited for.
func cpuOf(pid int, ended bool) time.Duration {
	f := statFields(fmt.Sprintf("/proc/%d/stat", pid))
	if len(f) < 15 {
		return 0
	}
	fields := f[11:13]
	if ended {
		fields = f[11:15]
	}
	var ticks int64
	for _, v := range fields {
		n, err := strconv.ParseInt(v, 10, 64)
		if err == nil {
			ticks += n
		}
	}
	return time.Duration(ticks) * clockTick
}

// statFields are the fields of proc(5) stat that follow the name.
func statFields(path string) []string {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	_, rest, found := strings.Cut(string(content), ") ")
	if !found {
		return nil
	}
	return strings.Fields(rest)
}

// peakOf is the largest resident memory of a process so far, in bytes. The rusage of a
// child counts the memory of its parent before exec.
func peakOf(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kilobytes, _ := strconv.ParseInt(strings.Fields(rest + " 0")[0], 10, 64)
	return kilobytes << 10
}

// serverCPU is the CPU time of the servers started here; zero for others.
type serverCPU struct{ postgres, clickhouse time.Duration }

func (env *environment) serverCPU() (c serverCPU) {
	if env.postgres != nil {
		c.postgres = cpuOfTree(env.postgres.PID())
	}
	if env.clickhouse != nil {
		c.clickhouse = cpuOf(env.clickhouse.PID(), false)
	}
	return c
}

func (c serverCPU) since(before serverCPU) serverCPU {
	return serverCPU{c.postgres - before.postgres, c.clickhouse - before.clickhouse}
}

// cost is what a measurement cost PostgreSQL.
type cost struct {
	cpu  time.Duration // 0 for a server not started here
	wal  int64         // bytes
	dead int64         // dead tuples
}

// meter starts a measurement and returns the function that ends it. Dead tuples are those
// of the tables whose name is LIKE tables.
func (b *testbed) meter(ctx context.Context, tables string) (func() (cost, error), error) {
	read := func() (c cost, err error) {
		c.cpu = b.env.serverCPU().postgres
		err = b.pool.QueryRow(ctx, `
			SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint,
			       (SELECT coalesce(sum(n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables WHERE relname LIKE $1)::bigint`, tables).
			Scan(&c.wal, &c.dead)
		return c, err
	}
	before, err := read()
	return func() (cost, error) {
		after, err := read()
		return cost{after.cpu - before.cpu, after.wal - before.wal, after.dead - before.dead}, err
	}, err
}
